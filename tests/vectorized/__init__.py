"""A second printer of kernels: PyTorch, in which all programs of a launch run at once.

    tiles.py      an expression as PyTorch
    printer.py    a kernel as a function of programs, and its routines beside it
    programs.py   what such a function is given: where programs stand, and their memory
    device.py     what kernels call
    launches.py   launches of Triton kernels, run that way

What it prints it also runs: the launchers of a package are those that ship, and tests that climb with the operators
need not know what their kernels run in.
"""

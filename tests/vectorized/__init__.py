"""A second printer of kernels: PyTorch, in which all programs of a launch run at once.

    tiles.py      an expression as PyTorch
    printer.py    a kernel as a function of programs, and its routines beside it
    standing.py   where programs stand: their loops and coordinates
    programs.py   what such a function is given: programs, and their tiles in memory
    device.py     what kernels call
    launches.py   launches of Triton kernels, run that way
    known.py      which kernel a Triton function is printed from

What it prints it also runs: the launchers of a package are those that ship, and tests that climb with the operators
need not know what their kernels run in.
"""

"""Time of compiled kernels on a GPU that isn't there, read from their SASS: an estimate, and it says so.

    sass     instructions with their control bits and the Python lines that they come from; loops
    warp     one warp that runs them, in order: cycles, and what it waits for
    pace     what a program costs an SM: latency, issue slots, matrix units, and how many programs fit
    launch   from that, programs and bytes to the time of a launch

The model and its two fitted constants reproduce public timings of flash-linear-attention on an H200; `launch` says how
well. It knows one architecture's latencies, sm_90.
"""

"""Python imports this before a program in the sandbox: it tells that the sandbox works and the program begins."""

import _thread
import os

if "SANDBOX_STARTED" in os.environ:
    started = int(os.environ.pop("SANDBOX_STARTED"))
    os.write(started, b"1")
    os.close(started)
    del started
    # Else a thread's stack is as large as the main one's, and a few of them are all the address space there is. It is
    # twice of what judges give; a program that wants more asks for it.
    _thread.stack_size(16 * 2**20)

"""MicroVMs by libkrun, through ctypes: `binding` makes the calls, `boot` finds out whether a guest starts here at all."""

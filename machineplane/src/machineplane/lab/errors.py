"""What can go wrong with a lab; each message is one line for the person at the keyboard."""


class LabError(Exception):
    """What happened, to what, and what to do."""


class NoSuchLab(LabError):
    """There is no lab of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no lab named {name}: make one with `machineplane lab up --name {name}`")


class NoSuchMachine(LabError):
    """The lab has no machine of that name."""


class MachineOff(LabError):
    """The machine is not running."""

    def __init__(self, machine: str) -> None:
        super().__init__(f"machine {machine} is off: start it with `machineplane lab start {machine}`")

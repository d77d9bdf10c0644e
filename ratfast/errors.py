"""The error that means "what you gave is wrong", as opposed to a defect of this library."""


class InputError(ValueError):
    """The user's input is wrong: a file, a folder, a key or a value.

    Its text is one sentence that names what is wrong and says what was expected. The command line prints that
    sentence and exits with code 2; in Python it is an ordinary `ValueError`.
    """


class UnfinishedError(RuntimeError):
    """Some tasks of a plan failed; all others are done, and the same command again tries the failed ones again.

    Args:
        lines: a sentence for each failed task.
        input_is_wrong: the user's input is the reason of all of them.
    """

    def __init__(self, lines: list[str], input_is_wrong: bool = False):
        super().__init__("; ".join(lines))
        self.lines = lines
        self.input_is_wrong = input_is_wrong

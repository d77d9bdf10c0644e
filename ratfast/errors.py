"""The error that means "what you gave is wrong", as opposed to a defect of this library."""


class InputError(ValueError):
    """The user's input is wrong: a file, a folder, a key or a value.

    Its text is one sentence that names what is wrong and says what was expected. The command line prints that
    sentence and exits with code 2; in Python it is an ordinary `ValueError`.
    """

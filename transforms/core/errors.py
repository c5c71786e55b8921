"""The errors that users see; importable by the command line, so nothing heavy stands here."""


class ImagebeamError(Exception):
    """A mistake the user can mend: the message names the thing, the value received and the remedy."""


class JobError(Exception):
    """A job that started could not finish: the message says what stopped it and what to do next."""

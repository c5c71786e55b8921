"""The one error that users see; importable by the command line, so nothing heavy stands here."""


class ImagebeamError(Exception):
    """A mistake the user can mend: the message names the thing, the value received and the remedy."""

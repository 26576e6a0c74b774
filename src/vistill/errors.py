"""Errors for people: each says what was wrong, with which file, key or value, and what to do."""


class VistillError(Exception):
    """Base of every error that vistill raises on purpose; the commands print it and exit with 2."""


class ImageError(VistillError):
    """A picture that cannot or must not be decoded.

    `reason` is one short name out of `vistill.runtime.image.REASONS`, the same in every report;
    `detail` is the sentence for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class DataError(VistillError):
    """A data set, an annotation file or a built folder that is missing, broken or inconsistent."""


class BundleError(VistillError):
    """A model bundle or checkpoint that is missing, broken, altered or of another format."""


class ConfigError(VistillError):
    """A setting with a wrong name, type or value; the message names the key."""

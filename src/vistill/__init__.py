"""vistill: small image-to-text models, distilled, scored, exported and run on a plain CPU."""

__version__ = "0.1.0"

TYPE_CHECKING = False  # as typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from vistill.runtime.answerer import Answer, Answerer
    from vistill.runtime.embedder import Embedder, Label
    from vistill.runtime.pipelines import Caption, Captioner

__all__ = ["Answer", "Answerer", "Caption", "Captioner", "Embedder", "Label", "__version__"]


def __getattr__(name: str) -> object:
    """Import what a user names once it is asked for: `import vistill` alone loads nothing."""
    if name in ("Answer", "Answerer"):
        from vistill.runtime import answerer

        return getattr(answerer, name)
    if name in ("Caption", "Captioner"):
        from vistill.runtime import pipelines

        return getattr(pipelines, name)
    if name in ("Embedder", "Label"):
        from vistill.runtime import embedder

        return getattr(embedder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Models by their name on the Hugging Face hub: `hub:organisation/name`.

Only safetensors, JSON and the chat template are downloaded; code never is.
"""

from __future__ import annotations

from pathlib import Path

from gennode.engine.checkpoint.weights import find_model
from gennode.errors import ModelError, NetworkError
from gennode.node.progress import ShowProgress

PREFIX = "hub:"
PATTERNS = ("*.safetensors", "*.json", "chat_template.jinja")


def find_or_download(model: str, progress: ShowProgress) -> Path:
    """The folder of a bundled model, of a path, or of a model on the hub, downloaded if need be.

    What the hub's cache has is not downloaded again. ModelError if there is no such model,
    NetworkError if the hub can't be reached.
    """
    if not model.startswith(PREFIX):
        return find_model(model)
    name = model.removeprefix(PREFIX)
    # Late: it takes a while to import, and most models are folders.
    from huggingface_hub import errors, snapshot_download

    try:
        with progress(f"downloading {name}", unit="steps"):
            return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelError(
            f"the hub has no model {name[:128]!r} for you",
            hint="check its name; for a gated model, log in with `hf auth login`",
        ) from error
    except OSError as error:
        raise NetworkError(
            f"{name} can't be downloaded: {str(error).splitlines()[0]}",
            hint="check the network, or give a folder, or a model's id to fetch it from peers",
        ) from error

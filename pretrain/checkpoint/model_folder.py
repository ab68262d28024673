"""A folder that Hugging Face transformers loads: how it is written, and how it comes to the hub."""

import os
import re
import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from earlybert.core.errors import UserError, WriteError
from earlybert.core.files import open_to_readers, read_json, write_json

# What a tokenizer remembers of the place that it was loaded from.
LOCAL_KEYS = ("is_local", "local_files_only", "name_or_path", "tokenizer_file", "special_tokens_map_file")
# What transformers 5 calls a tokenizer of no class of its own, and the name that 4.57 knows too.
ANY_TOKENIZER, ANY_TOKENIZER_BEFORE = "TokenizersBackend", "PreTrainedTokenizerFast"


def write_model_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, card: str, out: Path) -> None:
    """Weights, tokenizer and model card (README.md), and the code of a narrow model; complete or absent.

    What was in `out` before is replaced. Raises WriteError where it cannot be written, for example on a full disk.
    """
    temporary = out.with_name(f".{out.name}.tmp")
    disable_progress_bar()  # a bar for one file of one shard
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        _write_tokenizer(tokenizer, temporary, model.config.max_position_embeddings)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        open_to_readers(temporary)
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    except Exception as error:
        if (number := _system_error(error)) is None:
            raise
        raise WriteError(number, os.strerror(number), str(out)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _system_error(error: Exception) -> int | None:
    """The number of a refusal of the system; safetensors and tokenizers have it in the text of errors of their own."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, positions: int) -> None:
    """With the longest text that the model takes, and loadable wherever the model is."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    content = {key: value for key, value in read_json(file).items() if key not in LOCAL_KEYS}
    if content["tokenizer_class"] == ANY_TOKENIZER:
        content["tokenizer_class"] = ANY_TOKENIZER_BEFORE
    write_json(file, content | {"model_max_length": positions})


def require_pushable(repository: str) -> None:
    """Raises UserError where this is no name of a repository, or no token of the hub is known."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        named = "/" in repository
    except HFValidationError:
        named = False
    if not named:
        raise UserError(f"--push is {repository!r}; it must be a repository of the hub, as OWNER/NAME")
    if get_token() is None:
        raise UserError("--push needs a token of the hub; set HF_TOKEN or run hf auth login")


def push(folder: Path, repository: str) -> str:
    """Uploads a folder to a repository of the hub and returns its address; one that is new is private.

    Raises UserError where the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of EarlyBERT")
    # Of the library for the hub, of the one below it for the network, and of the system.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--push is {repository!r}, which cannot be uploaded to ({reason}); {folder} is complete"
        ) from None
    return str(address)

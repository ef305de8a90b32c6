"""A projector on the Hugging Face Hub: its two files fetched by name, and a projector pushed with its card."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from projector.models.resolve import HUB_NAME, locate
from projector.network.checkpoint import CONFIG, WEIGHTS, put_json, put_network
from projector.network.publishing import without_places
from shards.errors import UsageError
from shards.stores.local import open_storage


def find_projector(path: str, revision: str | None = None, token: str | None = None) -> tuple[str, str]:
    """Where a projector's weights are; from the Hub they are fetched into its cache first.

    Args:
        path: folder, s3:// root, `.safetensors` file, or Hub id (`org/name`, `org/name@revision`).
        revision: of a Hub id: a branch, a tag or a commit.
        token: of the Hub; None: the one of `hf auth login` or HF_TOKEN.

    Returns:
        the folder or s3:// root, and the name of the weights in it.

    Raises:
        UsageError: a Hub id that cannot be had, two revisions, or a revision of something else.
    """
    here = Path(path).expanduser()
    on_hub = "://" not in path and not here.exists() and HUB_NAME.fullmatch(path) is not None
    if not on_hub:
        if revision is not None:
            raise UsageError(
                f"revision = {revision!r}: {path!r} is no Hub id, and only the Hub has revisions; leave it out"
            )
        return (str(here.parent), here.name) if here.is_file() else (path, WEIGHTS)
    identity, _, pinned = path.partition("@")
    if pinned and revision not in (None, pinned):
        raise UsageError(f"revision = {revision!r}: {path!r} names another one; give one of the two")
    name = f"{identity}@{revision or pinned}"
    return str(locate("projector", name.rstrip("@"), files=(CONFIG, WEIGHTS), token=token)[1]), WEIGHTS


def push(
    network: Any,
    config: Mapping[str, Any],
    repo_id: str,
    *,
    restore: float,
    license_id: str,
    branch: str | None,
    private: bool | None,
    token: str | None,
    commit_message: str,
) -> str:
    """Put a projector into a repository of the Hub, which is made where there is none; a card that is there stays.

    Args:
        network: the projector's.
        config: its config.json; what says where things were on this machine is left out.
        repo_id: `org/name`.
        restore: how far outputs are stretched, for the card.
        license_id: the Hub's identifier of the licence, for a new card.
        branch: made where there is none; None: the default one.
        private: of a new repository; None: as the organisation has it.
        token: None: the one of `hf auth login` or HF_TOKEN.
        commit_message: of the commit.

    Returns:
        URL of the commit.
    """
    from huggingface_hub import HfApi

    from projector.network.model_card import CARD, FILES, Published, dataset_id, model_card  # draws in yaml

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if branch is not None:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    public = without_places(config)
    with TemporaryDirectory() as folder:
        storage = open_storage(folder)
        put_network(storage, network, public)
        put_json(storage, CONFIG, public)
        if not api.file_exists(repo_id, CARD, revision=branch):
            files = {name: FILES[name] for name in (WEIGHTS, CONFIG)}
            published = Published(
                public, None, (), files, license_id, restore, repository=repo_id, dataset=dataset_id(config)
            )
            storage.put_bytes(CARD, model_card(published).encode())
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=branch, commit_message=commit_message
        )
    return str(commit.commit_url)

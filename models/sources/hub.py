"""Models of the Hugging Face hub: a folder of the local cache, or fetched into it."""

import functools
import os
import pathlib
import socket
import urllib.parse
import urllib.request

import huggingface_hub

FILES = ("*.json", "*.safetensors", "*.jinja")
PROBE_SECONDS = 3


def fetch(repo: str) -> pathlib.Path:
    """The local folder of `repo` ("owner/name"), downloaded if it is not there.

    Raises ConnectionError at once where the hub cannot be reached: the client itself would go on
    trying for half a minute.
    """
    get = functools.partial(huggingface_hub.snapshot_download, repo, allow_patterns=list(FILES))
    try:
        return pathlib.Path(get(local_files_only=True))
    except huggingface_hub.errors.LocalEntryNotFoundError:
        pass
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    # Behind a proxy only the proxy can be reached, and that is enough.
    proxy = urllib.request.getproxies().get("https")
    url = urllib.parse.urlparse(proxy or endpoint)
    why = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else None
    if why is None:
        try:
            socket.create_connection((url.hostname, url.port or 443), PROBE_SECONDS).close()
        except OSError as error:
            why = f"{url.hostname} cannot be reached ({error})"
    if why:
        raise ConnectionError(
            f"{repo} is not in the local Hugging Face cache and {why}. Fetch it where there is "
            f"network (`hf download {repo}`) and pass the folder's path, or use one of the demo "
            "models, which come through the package registry."
        )
    return pathlib.Path(get())

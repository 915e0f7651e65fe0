"""Whether the model and data hub is within reach."""

import httpx
import huggingface_hub


def hub_answers() -> bool:
    """One short look, as the hub's own client goes on trying for a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(huggingface_hub.constants.ENDPOINT, timeout=5)
    except httpx.HTTPError:
        return False
    return True

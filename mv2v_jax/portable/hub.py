"""Maps on the Hugging Face Hub, with a card; apart, because importing it needs huggingface_hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

try:
    from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
except ImportError as error:
    raise ImportError('mv2v_jax.portable.hub needs huggingface_hub: pip install "mv2v_jax[hub]"') from error

from mv2v_jax.errors import InputError
from mv2v_jax.portable.numpy_map import PortableMap, from_map, load

FILE = "map.safetensors"

_LIMITS = """\
The map was fitted without known pairs, and its verdict and estimates are computed without labels. Check some true pairs
before you rely on it: 50 are enough. It maps rows of the encoder that it was fitted on, with the same prompt and
processing. It keeps no row's length. Rows mapped by it come near the rows of the other encoder and do not replace them.
"""


class HubMap(ModelHubMixin):
    """A map with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``, and a card that is made from its facts.

    Args:
        linear_map: a `PortableMap`, or the `mv2v_jax.LinearMap` of a fit.
        metadata: facts about the map of a fit, as for `mv2v_jax.save_map`: the card shows its verdict from them. A
            `PortableMap` has its own.

    Attributes:
        map: the `PortableMap`.

    Raises:
        InputError: ``linear_map`` is no map.
    """

    def __init__(self, linear_map: Any, metadata: Mapping[str, Any] | None = None) -> None:
        self.map = linear_map if isinstance(linear_map, PortableMap) else from_map(linear_map, metadata)
        # The mixin would write the arguments as JSON; the file of the map says everything.
        self._hub_mixin_config = None

    def apply(self, rows: Any, **choices: Any) -> np.ndarray:
        """Map raw rows; ``choices`` are the keywords of `PortableMap.apply`."""
        return self.map.apply(rows, **choices)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.map.save(save_directory / FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> Self:
        if model_kwargs:
            raise InputError(f"a map has no settings to load it with, found {', '.join(model_kwargs)}")
        if Path(model_id).is_dir():
            return cls(load(Path(model_id) / FILE))
        path = hf_hub_download(
            repo_id=model_id,
            filename=FILE,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls(load(path))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card: what was aligned, the verdict with its reason and estimates, limits, and how to use the map."""
        data = ModelCardData(library_name="mv2v_jax", tags=["embeddings", "embedding-alignment"], **kwargs)
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_describe(self.map)}")


def _describe(linear_map: PortableMap) -> str:
    d_x, d_y = linear_map.W.shape
    facts = linear_map.metadata
    judged = _table(facts, ("verdict", "reason", "confidence", "estimated_top1"))
    origin = _table(
        facts, ("n", "m", "digest_x", "digest_y", "pairs", "preset", "seed", "restarts", "mv2v_jax_version")
    )
    return f"""\
# A linear map between two embedding spaces

It maps rows of {d_x} dimensions to rows of {d_y} dimensions, and back.

## Verdict

{judged or "The file of this map holds no verdict."}

`confidence` is the estimated probability that the map is right; `estimated_top1` is the share of rows that should find
their true partner first among 2,000 rows. Both are estimates without labels.

## What was aligned

{origin or "The file of this map does not say."}

## Limits

{_LIMITS}
## Use

```python
from mv2v_jax.portable.hub import HubMap

linear_map = HubMap.from_pretrained("NAME/OF-THIS-MODEL")
mapped = linear_map.apply(rows, frame="target")  # rows [n, {d_x}] of the source encoder
```
"""


def _table(facts: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The facts of these names that the map has, a row each."""
    rows = [f"| {name} | {_round(facts[name])} |" for name in names if name in facts]
    return "\n".join(["| fact | value |", "|---|---|", *rows]) if rows else ""


def _round(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return f"{value:.3g}" if isinstance(value, float) else str(value)

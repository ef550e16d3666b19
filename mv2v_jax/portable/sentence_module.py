"""A map as the last module of a SentenceTransformer; apart, because importing it needs sentence-transformers."""

from pathlib import Path
from typing import Any, Self

try:
    from sentence_transformers.base.modules import Module
except ImportError as error:
    message = 'mv2v_jax.portable.sentence_module needs sentence-transformers: pip install "mv2v_jax[sentence]"'
    raise ImportError(message) from error

from mv2v_jax.frame import Frame, check_frame
from mv2v_jax.portable.numpy_map import PortableMap, load
from mv2v_jax.portable.torch_module import MapModule

_FILE = "map.safetensors"


class MapLayer(Module):
    """Maps the embeddings of the modules before it, so that ``encoder + map`` is one model that any store can load.

    ``SentenceTransformer(modules=[*encoder, MapLayer(linear_map)])`` embeds texts of the source encoder in the space of
    the target. ``save_pretrained`` keeps the map beside the encoder.

    Args:
        linear_map: from `load` or `from_map`; inverted by `PortableMap.invert` for the other direction.
        frame: as for `PortableMap.apply`.
    """

    config_keys = ["frame"]  # noqa: RUF012  The base class reads it so.

    def __init__(self, linear_map: PortableMap, frame: Frame = "target") -> None:
        super().__init__()
        check_frame(frame)
        self.frame, self.linear_map = frame, linear_map
        self.module = MapModule(linear_map, frame)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Replace the embeddings ``[n, d_x]`` by mapped ones ``[n, d_y]``."""
        return {**features, "sentence_embedding": self.module(features["sentence_embedding"])}

    def get_embedding_dimension(self) -> int:
        """Dimension of the target."""
        return self.linear_map.W.shape[1]

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the map and its frame into the folder of the module."""
        self.save_config(output_path)
        self.linear_map.save(Path(output_path) / _FILE)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Read what `save` wrote, from a folder or from the hub."""
        where = (subfolder, token, cache_folder, revision, local_files_only)
        file = cls.load_file_path(model_name_or_path, _FILE, *where)
        return cls(load(str(file)), **cls.load_config(model_name_or_path, subfolder, None, *where[1:]))

"""A LlamaIndex embedding model behind a map, to search an index that another encoder filled."""

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from mv2v_jax.portable.mapped import MappedTexts
from mv2v_jax.portable.numpy_map import PortableMap


class MappedEmbedding(BaseEmbedding):
    """Embeds texts by a model and maps the vectors; any index of LlamaIndex takes it as its ``embed_model``.

    Args:
        model: the model.
        linear_map: the map, from `mv2v_jax.portable.load`.
        inverse: the model is the target encoder of the map, and the index that of its source.
        unit: scale vectors to length 1, which is right wherever the vectors of the index have length 1, and changes
            nothing in searches by cosine.
    """

    _model: BaseEmbedding = PrivateAttr()
    _map: MappedTexts = PrivateAttr()

    def __init__(
        self, model: BaseEmbedding, linear_map: PortableMap, *, inverse: bool = False, unit: bool = True, **given: Any
    ) -> None:
        super().__init__(
            **{"model_name": f"{model.model_name} mapped", "embed_batch_size": model.embed_batch_size, **given}
        )
        self._model = model
        self._map = MappedTexts(linear_map, inverse=inverse, unit=unit)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._map([self._model.get_query_embedding(query)])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._map([await self._model.aget_query_embedding(query)])[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._map(self._model.get_text_embedding_batch(texts))

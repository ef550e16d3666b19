"""A LangChain embedding model behind a map, to search an index that another encoder filled."""

from langchain_core.embeddings import Embeddings

from mv2v_jax.portable.mapped import MappedTexts
from mv2v_jax.portable.numpy_map import PortableMap


class MappedEmbeddings(Embeddings):
    """Embeds texts by a model and maps the vectors; any vector store of LangChain takes it as its embedding.

    Args:
        embeddings: the model.
        linear_map: the map, from `mv2v_jax.portable.load`.
        inverse: the model is the target encoder of the map, and the index that of its source.
        unit: scale vectors to length 1, which is right wherever the vectors of the index have length 1, and changes
            nothing in searches by cosine.
    """

    def __init__(
        self, embeddings: Embeddings, linear_map: PortableMap, *, inverse: bool = False, unit: bool = True
    ) -> None:
        self.embeddings = embeddings
        self._map = MappedTexts(linear_map, inverse=inverse, unit=unit)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._map(self.embeddings.embed_documents(texts))

    def embed_query(self, text: str) -> list[float]:
        return self._map([self.embeddings.embed_query(text)])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._map(await self.embeddings.aembed_documents(texts))

    async def aembed_query(self, text: str) -> list[float]:
        return self._map([await self.embeddings.aembed_query(text)])[0]

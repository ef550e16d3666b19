"""The embedding models of LangChain and LlamaIndex behind a map, against the real packages and their own stores."""

import asyncio
import hashlib

import numpy as np
import pytest
from helpers import make_map, semi_orthogonal, unit

from mv2v_jax.portable.numpy_map import from_map

MAP = from_map(make_map(semi_orthogonal(np.random.default_rng(0), 8, 8), scale_y=2.0))
TEXTS = [f"text {number}" for number in range(40)]


def embed_old(text):
    """A unit vector of the old encoder that depends on the text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return unit(np.random.default_rng(seed).normal(size=8).astype(np.float32))


def embed_new(text):
    """The vector of the new encoder, to whose space the map leads."""
    return MAP.apply(embed_old(text), frame="target").tolist()


def test_langchain_searches_an_index_of_the_old_encoder():
    embeddings = pytest.importorskip("langchain_core.embeddings", reason="the package langchain-core is not installed")
    from langchain_core.vectorstores import InMemoryVectorStore

    from mv2v_jax.portable.langchain import MappedEmbeddings

    class Model(embeddings.Embeddings):
        def __init__(self, embed):
            self.embed = embed

        def embed_documents(self, texts):
            return [list(map(float, self.embed(text))) for text in texts]

        def embed_query(self, text):
            return self.embed_documents([text])[0]

    store = InMemoryVectorStore(Model(embed_old))
    store.add_texts(TEXTS)
    mapped = MappedEmbeddings(Model(embed_new), MAP, inverse=True)
    store.embedding = mapped
    for text in TEXTS:
        assert store.similarity_search(text, k=1)[0].page_content == text
    wanted = [embed_old(text) for text in TEXTS]
    np.testing.assert_allclose(mapped.embed_documents(TEXTS), wanted, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(mapped.aembed_documents(TEXTS)), wanted, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(mapped.aembed_query(TEXTS[0])), wanted[0], atol=1e-5)
    assert mapped.embed_documents([]) == []


def test_llama_index_searches_an_index_of_the_old_encoder():
    core = pytest.importorskip("llama_index.core", reason="the package llama-index-core is not installed")
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from mv2v_jax.portable.llama_index import MappedEmbedding

    class Model(BaseEmbedding):
        is_new: bool = False

        def _get_text_embedding(self, text):
            return list(map(float, (embed_new if self.is_new else embed_old)(text)))

        def _get_query_embedding(self, query):
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query):
            return self._get_text_embedding(query)

    documents = [core.Document(text=text) for text in TEXTS]
    index = core.VectorStoreIndex.from_documents(documents, embed_model=Model())
    mapped = MappedEmbedding(Model(is_new=True), MAP, inverse=True)
    found = index.as_retriever(similarity_top_k=1, embed_model=mapped)
    for text in TEXTS:
        assert found.retrieve(text)[0].text == text
    wanted = [embed_old(text) for text in TEXTS]
    np.testing.assert_allclose(mapped.get_text_embedding_batch(TEXTS), wanted, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(mapped.aget_query_embedding(TEXTS[0])), wanted[0], atol=1e-5)

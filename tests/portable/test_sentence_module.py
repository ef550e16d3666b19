"""``encoder + map`` is one SentenceTransformer: it encodes as both in turn, and is saved and loaded as one."""

import sys

import numpy as np
import pytest

pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["a cat", "a dog and a cat", "the river"]


@pytest.fixture
def encoder():
    """A tiny encoder, built here: the mean of nine random numbers per word."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    words = {word: number for number, word in enumerate(["[UNK]", "a", "cat", "dog", "and", "the", "river"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(words), 9)).astype(np.float32)
    return StaticEmbedding(tokenizer, embedding_weights=weights)


@pytest.mark.parametrize("frame", ["target", "centred"])
def test_one_model(tmp_path, encoder, portable_map, frame):
    from mv2v_jax.portable.sentence_module import MapLayer

    alone = sentence_transformers.SentenceTransformer(modules=[encoder], device="cpu")
    model = sentence_transformers.SentenceTransformer(modules=[encoder, MapLayer(portable_map, frame)], device="cpu")
    expected = portable_map.apply(alone.encode(TEXTS), frame=frame)
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)
    assert model.get_embedding_dimension() == 6
    model.save_pretrained(str(tmp_path / "model"))
    loaded = sentence_transformers.SentenceTransformer(
        str(tmp_path / "model"), device="cpu", local_files_only=True, trust_remote_code=True
    )
    np.testing.assert_allclose(loaded.encode(TEXTS), expected, atol=1e-5)


def test_without_the_package_the_import_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers.base.modules", None)
    monkeypatch.delitem(sys.modules, "mv2v_jax.portable.sentence_module", raising=False)
    with pytest.raises(ImportError, match=r'pip install "mv2v_jax\[sentence\]"'):
        import mv2v_jax.portable.sentence_module  # noqa: F401

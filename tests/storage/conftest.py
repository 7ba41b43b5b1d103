"""The model of the stores here."""

import pytest

import models


@pytest.fixture(scope="module")
def model(byte_model) -> models.LanguageModel:
    return models.load(str(byte_model), "float32")

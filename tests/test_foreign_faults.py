"""What `make faults` calls wrong in models from elsewhere."""

import json

from tests.support.faults import foreign

RIGHT = foreign.Model("name", "weights", "config", "tokens", "stops", "prompt")
WHOLE = b"header" + b"tensors"
HEADER = {"config", "tokens", "stops", "prompt"}


def of_tensors(data, **changes):
    is_right = foreign._of_tensors(WHOLE, len(b"header"), data, HEADER, RIGHT)
    return is_right(RIGHT._replace(**changes))


def test_a_header_does_not_change_weights_whatever_the_name():
    assert not of_tensors(b"HEADER" + b"tensors", name="other", weights="other")
    assert of_tensors(b"HEADER" + b"tensors", name="other", config="other")
    assert not of_tensors(b"header" + b"tensors and more", name="other", weights="other")


def test_tensors_change_weights_alone_and_never_without_the_name():
    assert of_tensors(b"header" + b"TENSORS", name="other", weights="other")
    assert not of_tensors(b"header" + b"TENSORS", weights="other")
    assert not of_tensors(b"header" + b"TENSORS", name="other", config="other")


def test_a_file_changes_what_it_speaks_of(tmp_path):
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": 1}')

    def of_text(content, **changes):
        is_right = foreign._of_text(path, json.dumps(content).encode(), RIGHT)
        return is_right(RIGHT._replace(**changes))

    assert of_text({"eos_token_id": 2}, stops="other") and of_text({}, stops="other")
    assert not of_text({"eor_token_id": 1}, stops="other")
    assert not of_text({"eos_token_id": 2}, prompt="other", name="other")

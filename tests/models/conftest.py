"""What the tests of models that predict clicks and ratings share."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def data_path(tmp_path_factory):
    """80 users of two tastes; ratings are 5 for one's own taste and 1 or 2 for the other."""
    words = ["red wool coat", "steel kitchen knife"]
    rng = np.random.default_rng(0)
    place = tmp_path_factory.mktemp("data")
    (place / "taste").mkdir()
    rows = [
        f"u{user}\ti{item}\t{5 if (user + item) % 2 == 0 else rng.integers(1, 3)}\t{step}"
        for user in range(80)
        for step, item in enumerate(rng.choice(40, 15, replace=False))
    ]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (place / "taste" / "taste.inter").write_text("\n".join([head, *rows]) + "\n")
    titles = [
        f"i{item}\t{words[item % 2]} {item}\t{['winter', 'cooking'][item % 2]}"
        for item in range(40)
    ]
    (place / "taste" / "taste.item").write_text(
        "\n".join(["item_id:token\ttitle:token_seq\tfor:token_seq", *titles]) + "\n"
    )
    said = [f"u{user}\t{words[user % 2]}" for user in range(80)]
    (place / "taste" / "taste.user").write_text(
        "\n".join(["user_id:token\twords:token_seq", *said]) + "\n"
    )
    (place / "taste" / "taste.yaml").write_text(
        "load_col: {inter: [user_id, item_id, rating, timestamp], item: [item_id, title]}\n"
        "item_text_fields: [title]\n"
    )
    return place

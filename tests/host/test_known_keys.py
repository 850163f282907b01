import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recbole_llm.errors import SettingsError
from recbole_llm.host import known_keys

# From RecBole's documentation of its configuration, as users' files hold them.
DOCUMENTED = (
    "gpu_id worker use_gpu seed state reproducibility data_path checkpoint_dir show_progress "
    "save_dataset dataset_save_path save_dataloaders dataloaders_save_path log_wandb wandb_project "
    "shuffle epochs train_batch_size learner learning_rate train_neg_sample_args eval_step "
    "stopping_step clip_grad_norm loss_decimal_place weight_decay require_pow enable_amp "
    "enable_scaler transform eval_args metrics topk valid_metric eval_batch_size "
    "metric_decimal_place repeatable field_separator seq_separator USER_ID_FIELD ITEM_ID_FIELD "
    "RATING_FIELD TIME_FIELD seq_len LABEL_FIELD threshold NEG_PREFIX numerical_features load_col "
    "unload_col unused_col additional_feat_suffix rm_dup_inter val_interval "
    "filter_inter_by_user_or_item user_inter_num_interval item_inter_num_interval alias_of_user_id "
    "alias_of_item_id alias_of_entity_id alias_of_relation_id preload_weight normalize_field "
    "normalize_all discretization ITEM_LIST_LENGTH_FIELD LIST_SUFFIX MAX_ITEM_LIST_LENGTH "
    "POSITION_FIELD HEAD_ENTITY_ID_FIELD TAIL_ENTITY_ID_FIELD RELATION_ID_FIELD kg_reverse_r "
    "entity_kg_num_interval relation_kg_num_interval benchmark_filename "
    "model dataset config_files nproc ip port world_size group_offset"
)
MODELS = sorted(known_keys.model_names().values())


def properties_folder() -> Path:
    import recbole

    return Path(recbole.__file__).parent / "properties"


def test_models_are_listed_by_module_and_class():
    names = known_keys.model_names()

    assert len(names) == 94
    assert names["lightgcn"] == "LightGCN"
    assert names["kd_dagfm"] == "KD_DAGFM"
    assert names["lightgbm"] == "LightGBM"  # its library is absent here
    assert "layers" not in names


def test_files_are_read_without_importing_any_of_recbole():
    code = (
        "import sys; from recbole_llm.host import known_keys; before = set(sys.modules);"
        "known = known_keys.recbole_keys('NGCF');"
        "known_keys.check_keys(['foo'], known, strict=False);"
        "print([name for name in set(sys.modules) - before if name.startswith('recbole.')])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(known_keys.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("model", MODELS)
def test_settings_of_recboles_own_files_are_never_flagged(model):
    known = known_keys.recbole_keys(model)
    own_files = [
        path
        for path in properties_folder().rglob("*.yaml")
        if not path.stem.endswith("url")
        and (path.parent.name != "model" or path.stem.lower() == model.lower())
    ]
    given = {key for path in own_files for key in yaml.safe_load(path.read_text()) or ()}

    assert known_keys.check_keys(given, known, strict=True) == []
    assert known_keys.check_keys(DOCUMENTED.split(), known, strict=True) == []


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("eval_arg", "eval_args"),
        ("topK", "topk"),
        ("epoch", "epochs"),
        ("train_batchsize", "train_batch_size"),
    ],
)
def test_misspelling_is_an_error_for_every_model(misspelt, meant, strict):
    for model in MODELS:
        with pytest.raises(SettingsError, match=f"`{misspelt}`; did you mean `{meant}`"):
            known_keys.check_keys([misspelt], known_keys.recbole_keys(model), strict=strict)


def test_misspelt_setting_of_the_model_is_an_error():
    with pytest.raises(SettingsError, match="`embeding_size`; did you mean `embedding_size`"):
        known_keys.check_keys(["embeding_size"], known_keys.recbole_keys("BPR"), strict=False)
    with pytest.raises(SettingsError, match="`n_layer`; did you mean `n_layers`"):
        known_keys.check_keys(["n_layer"], known_keys.recbole_keys("LightGCN"), strict=False)


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("EASE", "reg_weight"),  # its YAML
        ("EulerNet", "order_list"),  # config.order_list
        ("KD_DAGFM", "warm_up"),  # "warm_up" not in config
        ("KD_DAGFM", "t_depth"),  # by prefix
        ("ItemKNN", "shrink"),  # "shrink" in config
        ("ConvNCF", "embedding_size"),
        ("RaCT", "pretrain_epochs"),  # its trainer
        ("S3Rec", "save_step"),
        ("BPR", "neg_sampling"),  # final_config_dict.get("neg_sampling")
        ("BPR", "discretization"),
        ("BPR", "token_num_threshold"),
    ],
)
def test_key_that_code_reads_is_known(model, key):
    assert key in known_keys.recbole_keys(model)


def test_names_of_config_methods_and_data_sets_are_not_settings():
    known = known_keys.recbole_keys("BPR")

    assert not known & {"get", "items", "final_config_dict", "compatibility_settings", "ml-1m"}


def test_key_of_another_model_is_not_known():
    assert "n_layers" in known_keys.recbole_keys("LightGCN")
    assert "n_layers" not in known_keys.recbole_keys("BPR")


def test_model_class_brings_the_keys_of_its_own_module_and_of_its_bases(tmp_path, monkeypatch):
    (tmp_path / "my_light_gcn.py").write_text(
        "from recbole.model.general_recommender import LightGCN\n"
        "class MyLightGCN(LightGCN):\n"
        "    def __init__(self, config, dataset):\n"
        "        self.alpha = config['my_alpha']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_light_gcn

    known = known_keys.recbole_keys(my_light_gcn.MyLightGCN)

    assert known == known_keys.recbole_keys("LightGCN") | {"my_alpha"}


@pytest.mark.parametrize("name", ["LihgtGCN", "lightgcn"])
def test_unknown_model_is_an_error_with_the_nearest_name(name):
    with pytest.raises(SettingsError, match=f"no model `{name}`; did you mean `LightGCN`"):
        known_keys.recbole_keys(name)


def test_strict_names_every_unknown_key_in_one_line():
    known = {"item_text_fields", "seed"}

    with pytest.raises(SettingsError) as caught:
        known_keys.check_keys(["item_text_field", "seed", "foo"], known, strict=True)

    assert str(caught.value) == (
        "unknown setting `item_text_field`; did you mean `item_text_fields`?; unknown setting `foo`"
    )


def test_unrelated_key_is_a_warning_where_not_strict():
    known = known_keys.recbole_keys("BPR")

    assert known_keys.check_keys(["foo", "seed"], known, strict=False, model="BPR") == [
        "setting `foo` is not known to RecBole or its model BPR; it is ignored"
    ]


def test_key_of_another_model_is_a_warning_even_near_a_known_name():
    # One file of settings may serve NGCF (`hidden_size_list`) and SASRec (`hidden_size`).
    warnings = known_keys.check_keys(
        ["hidden_size"], known_keys.recbole_keys("NGCF"), strict=False, model="NGCF"
    )

    assert warnings == [
        "setting `hidden_size` is not known to RecBole or its model NGCF; it is ignored"
        "; did you mean `hidden_size_list`?"
    ]

"""Command lines with a mistake: one sentence that names it and the nearest right name, status 2, nothing written."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.ticket import FullShape, TicketRule
from tests.conftest import small_recipe, write_text
from tests.in_process import run_here

# Words of parsers and of Python, which a user does not have to know.
JARGON = (
    *("Traceback", "usage:", "Literal[", "<class", "Parser key", "Subtypes", "NoneType", "Errno", "positional"),
    *("invalid choice", "invalid int", "expected one argument", "arguments are required", "unrecognized"),
)
LONGEST = 700

# A command line, and what its sentence must say.
COMMANDS = [
    ("trian", "unknown command 'trian'; did you mean train?"),
    ("prepaer --out x", "'prepaer'; did you mean prepare?"),
    ("fine-tune --model run", "'fine-tune'; did you mean finetune?"),
    ("fillmask run", "'fillmask'; did you mean fill-mask?"),
    ("Report run", "'Report'; did you mean report?"),
    ("--verison", "'--verison'; did you mean --version?"),
    ("ticket", "action is missing; see earlybert ticket --help"),
    ("ticket sho run/ticket.json", "action is 'sho'; did you mean show?"),
    ("checkpoint lst run", "action is 'lst'; did you mean list?"),
    ("prepare merg corpus", "unknown command 'merg' of earlybert prepare; did you mean merge?"),
    ("prepare verfy corpus", "'verfy' of earlybert prepare; did you mean verify?"),
]
OPTIONS = [
    ("train --config small.yaml --run_dri x", 'unknown option --run_dri; did you mean "run_dir"?'),
    ("train --config small.yaml --begin_agan", '--begin_agan; did you mean "begin_again"?'),
    ("train --config small.yaml --phase1.lenght 32", '--phase1.lenght; did you mean "phase1.length"?'),
    ("plan --cluter 4x8 V100-32GB", '--cluter; did you mean "cluster"?'),
    ("plan --pahse1.steps 3", '--pahse1.steps; did you mean "phase1.steps"?'),
    ("plan --corpus.cleaning.min_letter_sahre 0.3", 'did you mean "corpus.cleaning.min_letter_share"?'),
    ("ticket draw run --head_ration 0.5 --out t.json", '--head_ration; did you mean "head_ratio"?'),
    ("ticket random --config small.yaml --model.num_layres 2 --out t.json", 'did you mean "model.num_layers"?'),
    ("export run --out x --formt bert", '--formt; did you mean "format"?'),
    ("report run --otu x", '--otu; did you mean "out"?'),
    ("fill-mask run --top 3", "unknown option --top; see earlybert fill-mask --help"),
    ("prepare --source text --file text.txt --out x", '--file; did you mean "files"?'),
    ("prepare --source text --files text.txt --out x --cleaning.near_duplicate true", '"cleaning.near_duplicates"?'),
    ("prepare stats corpus --pmg x.png", '--pmg; did you mean "png"?'),
    ("finetune --model run --out x --task RTE --bacth_size 2", '--bacth_size; did you mean "batch_size"?'),
]
CHOICES = [
    ("export run --out x --format BRET", "--format is 'BRET'; did you mean bert?"),
    ("plan --precision fp61", "precision is fp61; did you mean fp16?"),
    ("plan --precision half", "precision is half; it must be one of auto, fp32, bf16, fp16"),
    ("plan --masking dynamci", "masking is dynamci; did you mean dynamic?"),
    ("plan --export [brt]", "export is brt; did you mean bert?"),
    ("plan --compile maybe", "compile is maybe; it must be true or false or auto"),
    ("plan --deterministic maybe", "deterministic is maybe; it must be true or false"),
    ("plan --plan [phase1,phse2]", 'plan is phse2 in one place, which is no word of a plan; did you mean "phase2"?'),
    ("plan --losses [maskd]", "losses has 'maskd', which is no part of the loss; did you mean masked?"),
    ("plan --cluster 4x8 V100", "the GPU 'V100', which is not known; did you mean V100-"),
    ("plan --cluster 4by8 V100-32GB", "'4by8 V100-32GB'; it must be NODES x GPUS-PER-NODE GPU, for example \"4x8"),
    ("plan '--grow=[{until: 0.5, layer: 6}]'", "grow[0].layer is no field of a part; did you mean layers?"),
    ("ticket tune --config small.yaml --device V100-32GB", "--device is 'V100-32GB'; did you mean v100?"),
    ("prepare --source txt --files text.txt --out x", "source is 'txt' (did you mean text?)"),
    ("prepare --source text --files text.txt --out x --tokenizer_kind wordpeice", "did you mean wordpiece?"),
    ("prepare --source text --files text.txt --out x --objective nps", "objective is nps; did you mean nsp?"),
    ("prepare --source text --files text.txt --out x --language german", "language is 'german', but must be a code"),
    ("finetune --model run --out x --task rtee", "--task is 'rtee', which is not known; did you mean RTE?"),
    (
        "finetune --model run --out x --task RTE --method dens",
        "--method is 'dens', which is not known; did you mean de",
    ),
    ("finetune --model run --out x --task RTE --ranking coeficient", "ranking is coeficient; did you mean coeff"),
]
NUMBERS = [
    ("plan --phase1.length many", "phase1.length is many; it must be a whole number"),
    ("plan --phase1.steps 12.5", "phase1.steps is 12.5; it must be a whole number"),
    ("plan --phase1.steps 1,000", "phase1.steps is 1,000; it must be a whole number"),
    ("plan --phase1.steps 0", "phase1.steps is 0; it must be at least 1"),
    ("plan --phase1.length -3", "phase1.length is -3; it must be at least 8 and at most model.max_position_embeddings"),
    ("plan --phase1.learning_rate 1e400", "phase1.learning_rate is inf; it must be a finite number"),
    ("plan --phase1.learning_rate nan", "phase1.learning_rate is nan; it must be a number"),
    ("plan --phase1.warmup 1.5", "phase1.warmup is 1.5; it must be at least 0 and below 1"),
    ("plan --phase1.micro_batch atuo", "phase1.micro_batch is atuo; it must be a whole number or auto"),
    ("plan --seed -1", "seed is -1; it must be at least 0"),
    ("plan --log_every ''", "log_every is ''; it must be a whole number"),
    ("plan --optimizer.betas [0.9,1.5]", "optimizer.betas is [0.9, 1.5]; it must be two numbers"),
    ("plan --phase1 3", "phase1 is '3', but is a section; give its fields one by one, as --phase1.FIELD"),
    ("plan --network-gbit fast", "--network_gbit is 'fast'; it must be a number"),
    ("train --config small.yaml --run-dir x --phase1.steps -3", "phase1.steps is -3; it must be at least 1"),
    ("train --config small.yaml --run-dir x --data corpus --precision fp16", "precision is fp16, which CPUs have no"),
    ("ticket random --config small.yaml --seed -1 --out t.json", "--seed is -1; it must be at least 0"),
    ("ticket draw run --step three --out t.json", "--step is 'three'; it must be a whole number"),
    ("ticket draw run --step 3 --out t.json", "step-000003.safetensors: no coefficients were recorded at this step"),
    ("ticket draw run --head-ratio 1.5 --out t.json", "draw.head_ratio is 1.5; it must be at least 0 and below 1"),
    ("ticket draw run --neuron-ratio nan --out t.json", "draw.neuron_ratio is nan; it must be at least 0"),
    ("ticket tune --config small.yaml --tokens -5", "--tokens is '-5'; it must be a positive integer"),
    ("prepare --source text --files text.txt --out x --vocab_size many", "vocab_size is many; it must be a whole"),
    ("prepare --source mix --out x --mix '[{name: a, files: text.txt}]'", "mix.files is text.txt; it must be a list"),
    ("prepare --source mix --out x --mix '[{name: a, weight: much}]'", "mix.weight is much; it must be a number"),
    ("prepare --source text --files text.txt --out x --workers 0", "workers is 0, but must be at least 1"),
    ("prepare --source text --files text.txt --out x --part 9/8", "part is 9/8, but must be from 1/8 to 8/8"),
    (
        "prepare --source text --files text.txt --out x --lengths 128 2",
        "lengths has 2, but a sequence needs at least 8",
    ),
    ("finetune --model run --out x --task RTE --epochs -1", "epochs is -1.0; it must be above 0"),
    ("finetune --model run --out x --task RTE --learning_rate 1e400", "learning_rate is inf; it must be a finite"),
    ("finetune --model run --out x --task RTE --seed one", "seed is one; it must be a whole number"),
]
PATHS = [
    ("plan --config smal.yaml", "--config is 'smal.yaml', which is no recipe", "did you mean small.yaml?"),
    ("plan --config quikstart", "--config is 'quikstart', which is no recipe", "did you mean quickstart?"),
    ("plan --config run", "--config is 'run', which is no recipe, and as a path it is a run"),
    ("plan --data corpsu", "corpsu is no complete corpus", "did you mean", "/corpus?"),
    (
        "plan --config small.yaml --data corpus --phase1.length 16",
        "has no samples of length 16; it was prepared",
    ),
    ("train --config small.yaml --run-dir x --data run", "/manifest.json is missing, so", "it is a run"),
    ("train --config small.yaml --run-dir x --ticket run/tikcet.json", "/tikcet.json: cannot be read", "/ticket.json?"),
    ("train --config small.yaml --run-dir text.txt", "run-dir is text.txt", "text.txt is a file"),
    (
        "train --config small.yaml --run-dir text.txt/x",
        "run-dir is text.txt/x, which cannot be written to",
        "is a file",
    ),
    ("train --config small.yaml --run-dir corpus", "run-dir is corpus, which is a prepared corpus; name a new folder"),
    ("train --config small.yaml --run-dir x --corpus.files txt.txt", "no file matches txt.txt; did you mean text.txt?"),
    ("train --config small.yaml --run-dir x --data corpus --initial runn", "'runn', which is no run", "mean run?"),
    ("plan --config small.yaml --initial corpus", "corpus: has neither config.yaml", "it is a prepared corpus"),
    ("plan --config small.yaml --data corpus --deepspeed lam.json", "lam.json: cannot be read", "/lamb.json?"),
    ("ticket show run/tikcet.json", "run/tikcet.json: cannot be read", "did you mean run/ticket.json?"),
    ("ticket show folder", "folder/ticket.json: cannot be read (No such file or directory)"),
    ("ticket show empty.json", "empty.json:1: is not valid JSON"),
    ("ticket show run/plan.json", "run/plan.json: \"format\" is None; a ticket has 'earlybert-ticket/1'"),
    (
        "ticket compare run/ticket.json other.json",
        "other.json: is a ticket for a model with num_layers 3; here it must",
    ),
    (
        "ticket draw corpus --out t.json",
        "corpus: is not a run directory, which has config.yaml; it is a prepared corpus",
    ),
    ("ticket draw run --out folder", "folder cannot be written (Is a directory); name another place"),
    ("ticket all --config small.yaml --out text.txt/t.json", "text.txt/t.json cannot be written", "another place"),
    ("checkpoint list runn", "runn: is not a run directory", "did you mean run?"),
    ("checkpoint verify run/export/bert", "run/export/bert: is not a run directory", "it is a model"),
    ("export runn --out x", "runn: is not a run directory", "did you mean run?"),
    ("export text.txt --out x", "text.txt: is not a run directory", "it is a file"),
    ("export run --out corpus", "--out is corpus, which exists already; it must be a new or an empty folder"),
    ("export run --out text.txt/x", "--out is text.txt/x, which cannot be written to", "text.txt is a file"),
    ("fill-mask run/export/bert", "run/export/bert: is not a run directory", "it is a model"),
    ("fill-mask run 'no word is hidden'", "'no word is hidden' has 0 [MASK]; it must have one"),
    ("report run runn", "runn: is not a run directory", "did you mean run?"),
    ("report run --out text.txt", "--out is text.txt, which cannot be written to (text.txt is a file)"),
    ("prepare --source text --files text.tx --out x", "files: no file matches text.tx; did you mean text.txt?"),
    ("prepare --source text --files folder --out x", "no file in the folder folder ends in .txt or .jsonl"),
    ("prepare --source text --files small.yaml --out x", "files: small.yaml must end in .txt or .jsonl or .parquet"),
    ("prepare --source text --files text.txt --out run", "run exists and is not a corpus; name a new or an empty"),
    ("prepare --source text --files text.txt --out text.txt/x", "out is text.txt", "text.txt is a file"),
    (
        "prepare --source text --files text.txt --out x --tokenizer vocba.txt",
        "no file or folder vocba.txt",
        "did you mean vocab.txt?",
    ),
    ("prepare --source text --files text.txt --out x --add_tokens vocba.txt", "vocba.txt", "did you mean vocab.txt?"),
    ("prepare --source hub --hub_name foldr --out x", "the data set foldr cannot be loaded", "did you mean folder?"),
    ("prepare verify corpsu", "corpsu is no complete corpus", "there is no such file or folder; did you mean corpus?"),
    ("prepare merge corpsu", "no part of the corpus corpsu has been prepared; did you mean corpus?"),
    ("prepare stats run", "run/manifest.json is missing, so run is no complete corpus; it is a run"),
    ("prepare stats corpus --png folder", "folder cannot be written (Is a directory)"),
    ("finetune --model runn --out x --task RTE", "--model is 'runn', which is no run", "did you mean run?"),
    ("finetune --model corpus --out x --task RTE", "corpus: has neither config.yaml", "it is a prepared corpus"),
    ("finetune --model run --out x --task RTE --data foldr", "--data is foldr", "did you mean folder?"),
    ("finetune --model run --out text.txt --task RTE", "--out is text.txt, which cannot be written to"),
]
FILES = [
    ("plan --config tab.yaml", "tab.yaml:2: is not valid YAML", "\\t"),
    ("plan --config twice.yaml", 'twice.yaml:2: key "seed" appears twice'),
    ("plan --config list.yaml", "list.yaml:1: a recipe must be a mapping of keys to values"),
    ("plan --config typo.yaml", 'typo.yaml:2: unknown key "phase1.lerning_rate"; did you mean "learning_rate"?'),
    ("plan --config words.yaml", "phase1.steps is six; it must be a whole number"),
    ("plan --config code.yaml", "code.yaml:1: is not valid YAML", "python/object"),
    ("plan --config empty.yaml", "empty.yaml: is empty; it must be a recipe"),
    ("plan --config latin.yaml", "latin.yaml: is not UTF-8; it must be a recipe"),
    (
        "prepare --config typo-corpus.yaml --out x",
        'typo-corpus.yaml:3: unknown key "vocab_sise"; did you mean "vocab_s',
    ),
    ("prepare --config mix.yaml --out x", 'mix.yaml:3: unknown key "mix.wieght"; did you mean "weight"?'),
    (
        "prepare --config cleaning.yaml --out x",
        'unknown key "cleaning.min_letter_shar"; did you mean "min_letter_share"',
    ),
    ("prepare --config list.yaml --out x", "list.yaml:1: a configuration of a corpus must be a mapping"),
    ("prepare --config tab.yaml --out x", "tab.yaml:2: is not valid YAML"),
    ("prepare --config latin.yaml --out x", "latin.yaml: is not UTF-8; it must be a configuration of a corpus"),
    ("prepare --config mxi.yaml --out x", "mxi.yaml: cannot be read", "did you mean mix.yaml?"),
    ("prepare --config text.txt --out x", "text.txt:1: a configuration of a corpus must be a mapping"),
    ("plan --config small.yaml --deepspeed key.json", 'unknown or unsupported key "gradient_cliping"', "gradient_clip"),
    ("plan --config small.yaml --deepspeed bad.json", "bad.json:1: is not valid JSON"),
    ("plan --config small.yaml --deepspeed twice.json", 'twice.json: is JSON that cannot be read (key "fp16" appears'),
    ("plan --config small.yaml --deepspeed type.json", "optimizer.type is 'Lam'; it must be one of Lamb, Muon, AdamW"),
]
ARGUMENTS = [
    ("train x --config small.yaml", "unexpected argument 'x'; see earlybert train --help"),
    ("train --run-dir", "--run_dir has no value; see earlybert train --help"),
    ("train --config small.yaml --run-dir x --seed", "--seed has no value"),
    ("ticket show", "ticket is missing; see earlybert ticket show --help"),
    ("ticket compare run/ticket.json", "second is missing"),
    ("ticket draw run run --out t.json", "unexpected argument 'run'; see earlybert ticket draw --help"),
    ("ticket random --out t.json", "--config is missing; it must name the recipe"),
    ("ticket random --like run/ticket.json --config small.yaml --out t.json", "leave one of them out"),
    ("ticket tune --run-dir run --config small.yaml", "takes either --run-dir RUN or --config RECIPE"),
    ("ticket tune --config small.yaml --measure --device cpu", "--measure times this machine, so it takes no --device"),
    ("checkpoint list", "run_dir is missing; see earlybert checkpoint --help"),
    ("checkpoint list run text.txt", "unexpected argument 'text.txt'"),
    ("export run", "--out is missing; see earlybert export --help"),
    ("fill-mask", "run_dir is missing; see earlybert fill-mask --help"),
    ("report", "RUN is missing; see earlybert report --help"),
    ("prepare --source text", "out is missing; see earlybert prepare --help"),
    ("prepare --source text --out x", "files is empty, but source text needs at least one file"),
    ("prepare --source hub --out x", "hub_name is not set, but source hub needs the name or folder of a data set"),
    ("prepare --source text --files text.txt --out x extra=1 --lengths", "--lengths has no value"),
    ("prepare merge", "directory is missing; see earlybert prepare merge --help"),
    (
        "prepare --source text --files text.txt --out x --workers 2 --dask tcp://a:1",
        "workers is 2, but dask is tcp://a:1",
    ),
    ("finetune --model run --out x", "task is missing; see earlybert finetune --help"),
    ("train --config small.yaml --run-dir run --seed 3", "seed is 3, but this run began with 42"),
]
LINES = [*COMMANDS, *OPTIONS, *CHOICES, *NUMBERS, *PATHS, *FILES, *ARGUMENTS]


@pytest.fixture(scope="module")
def place(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its corpus, a text, a recipe, and files with mistakes."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "run").symlink_to(finished_run)
    # There may be others: those of other files' tests.
    (folder / "corpus").symlink_to(yaml.safe_load((finished_run / "config.yaml").read_text())["data"])
    (folder / "folder").mkdir()
    write_text(folder / "text.txt", documents=2)
    recipe = small_recipe(folder / "text.txt")
    files = {
        "small.yaml": yaml.safe_dump(recipe),
        "words.yaml": yaml.safe_dump(recipe | {"phase1": recipe["phase1"] | {"steps": "six"}}),
        "tab.yaml": "seed: 3\n\tmodel: 3\n",
        "twice.yaml": "seed: 3\nseed: 4\n",
        "list.yaml": "- phase1\n- phase2\n",
        "typo.yaml": "phase1:\n  lerning_rate: 3\n",
        "code.yaml": "seed: !!python/object/apply:os.getpid []\n",
        "empty.yaml": "",
        "typo-corpus.yaml": "source: text\nfiles: [text.txt]\nvocab_sise: 300\n",
        "mix.yaml": "source: mix\nmix:\n  - {name: a, source: text, files: [text.txt], wieght: 2}\n",
        "cleaning.yaml": "source: text\nfiles: [text.txt]\ncleaning: {min_letter_shar: 0.5}\n",
        "vocab.txt": "a\nb\n",
        "empty.json": "",
        "lamb.json": "{}",
        "key.json": json.dumps({"gradient_cliping": 1}),
        "bad.json": '{"gradient_clipping": 1,}',
        "twice.json": '{"fp16": {}, "fp16": {}}',
        "type.json": json.dumps({"optimizer": {"type": "Lam", "params": {}}}),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes("seed: 3 # für\n".encode("latin-1"))
    other = FullShape(num_layers=3, num_heads=4, head_size=16, intermediate_size=96)
    random_ticket(other, TicketRule(head_ratio=0.25, neuron_ratio=0.3, width_multiple=8), 0).save(folder / "other.json")
    return folder


def listing(place: Path) -> dict[Path, int]:
    """All that is there, with times, also in the run and the corpus."""
    folders = (place, place.resolve() / "run", place.resolve() / "corpus")
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.resolve().rglob("*")}


@pytest.mark.parametrize(("line", "parts"), [(line, parts) for line, *parts in LINES], ids=[line[0] for line in LINES])
def test_a_mistake_is_named_in_one_sentence(
    line: str, parts: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = listing(place)
    status, output = run_here(place, *shlex.split(line))
    assert status == 2, output
    assert output.startswith("earlybert: error: ") and output.count("\n") == 1 and len(output) < LONGEST, output
    assert not [word for word in JARGON if word in output], output
    assert [part for part in parts if part not in output] == [], output
    assert listing(place).items() ^ before.items() == set()


def test_what_stops_a_training_is_said_before_it_imports_anything_slow(place: Path) -> None:
    """A process of its own, in which nothing has been imported yet."""
    slow = ("--precision", "--initial", "--corpus.files")
    lines = [
        shlex.split(line) for line, *_ in LINES if line.startswith("train ") and not any(word in line for word in slow)
    ]
    program = (
        "import json, sys\nfrom earlybert.core import cli\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    try:\n        cli.main(line)\n"
        "    except SystemExit as left:\n        assert left.code == 2, line\n"
        "    slow = {'torch', 'deepspeed', 'transformers'} & sys.modules.keys()\n    assert not slow, (line, slow)\n"
    )
    command = [sys.executable, "-c", program, json.dumps(lines)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=os.environ | {"RANK": "0"})
    assert done.returncode == 0 and len(lines) >= 10, done.stderr
    assert done.stderr.count("earlybert: error: ") == len(lines)

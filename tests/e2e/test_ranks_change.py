"""An island that is resumed with another number of ranks than it was saved with."""

import sys

import pytest
import torch

from tests.e2e.runs import DEADLINE_S, ROOT, lines

RECIPE = ROOT / "recipes" / "quickstart.toml"
SETTINGS = (
    "shared.schedule.inner_steps=5", "shared.model.dim=32", "shared.model.layers=1", "shared.model.heads=2",
    "shared.model.kv_heads=2", "shared.model.ffn_dim=64", "shared.model.context=32", "train.eval_windows=16",
    "train.batch_size=2", "train.checkpoint_every=1", "train.keep_checkpoints=9", "metrics.wandb=off",
)  # fmt: skip
STEP_TOKENS = 2 * 32


@pytest.mark.processes
def test_more_and_fewer_ranks_go_on_with_the_data_where_it_was(tmp_path, source, logged):
    out, trained = tmp_path / "run", 0
    for life, ranks in enumerate((1, 3, 2, 1)):
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
        settings = (*SETTINGS, f"data.source={source}", f"train.steps={5 * life + 5}")
        options = ["--out", str(out), *(part for setting in settings for part in ("--set", setting))]
        program = [sys.executable, "-m", *(torchrun if ranks > 1 else []), "lowcomm"]
        process = logged(f"life-{life}", [*program, "train", str(RECIPE), *options])
        log = tmp_path / f"life-{life}.log"
        assert process.wait(DEADLINE_S) == 0, log.read_text()
        trained += 5 * ranks * STEP_TOKENS
        (saved,) = (out / "checkpoints").glob(f"step-{5 * life + 5:09d}")
        states = [rank["loader"] for rank in torch.load(saved / "ranks.pt")]
        assert len(states) == ranks
        assert {state["tokens"] for state in states} == {trained}
        if life:
            before = (1, 3, 2)[life - 1]
            said = f"was saved by {before} ranks and goes on with {ranks}: the data goes on after the windows"
            assert said in log.read_text()
            assert f"an inner step takes {ranks * STEP_TOKENS} tokens now" in log.read_text()
    ends = [line for line in lines(out / "metrics.jsonl") if line["kind"] == "end"]
    assert [end["reason"] for end in ends] == ["finished"] * 4
    assert ends[-1]["summary"]["tokens"] == trained == ends[-1]["summary"]["tokens_credited"]

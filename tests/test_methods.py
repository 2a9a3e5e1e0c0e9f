"""Methods text: every number true, every citation resolved."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest

from singlestrip_bids import bibliography, cli, guard, labels, methods
from singlestrip_bids.config import PRESETS
from singlestrip_bids.reports import Row

MODEL = Path("code/singlestrip")
CARD = {
    "network": "round-1.safetensors",
    "self_trained": True,
    "guard": {
        "kept": "round-1",
        "standings": {
            "sl1": {"copies": 0.81, "pool": 0.82},
            "round-1": {"copies": 0.83, "pool": 0.84},
        },
    },
    "label": [{"scan": "sub-01/anat/sub-01_T1w.nii.gz", "mask": "m.nii.gz"}],
    "unlabelled": [
        f"sub-{n:02}/anat/sub-{n:02}_{contrast}.nii.gz"
        for n in range(2, 7)
        for contrast in ("T1w", "T2w")
    ][1:],
    "voxel_size_mm": 3.73,
    "brain_ml": 1500.0,
    "method": PRESETS["quick"].to_dict(),
    "versions": {
        "singlestrip-bids": "9.8.7",
        "python": "3.11.7",
        "torch": "2.13.0",
        "numpy": "2.4.6",
        "scipy": "1.17.1",
        "scikit-learn": "1.9.1",
        "nibabel": "5.4.2",
        "threads": 2,
        "gpu": None,
    },
    "sha256": {"round-1.safetensors": "abc"},
}


def scores(*rounds: int) -> list[dict[str, str]]:
    """Rows of rounds that kept so many scans each; the last scan could not be used."""
    last = CARD["unlabelled"][-1]
    return [
        {
            "round": str(number),
            "scan": scan,
            "kept": str(place < kept),
            "note": "damaged" if scan == last else "n/a",
        }
        for number, kept in enumerate(rounds, 1)
        for place, scan in enumerate(CARD["unlabelled"])
    ]


def masks(*expected: float, model: str = "abc") -> list[Row]:
    fields = [{"ExpectedDice": value, "ModelSHA256": model} for value in expected]
    return [Row(f"sub-{i}/anat/sub-{i}_T1w.nii.gz", f, {}, ()) for i, f in enumerate(fields)]


def changed(**method) -> dict:
    card = copy.deepcopy(CARD)
    card["method"] |= method
    return card


def flat(prose: str) -> str:
    return " ".join(prose.split())


RUNS = {
    "consensus": (CARD, scores(4), masks(0.9, 0.95, 0.97)),
    "paper": (changed(pseudo_labels="network", rounds=3), scores(4, 5, 6), []),
    "full": ({**CARD, "method": PRESETS["full"].to_dict()}, scores(4), masks(0.9)),
    "no pool": ({**changed(), "unlabelled": [], "self_trained": False}, [], masks(0.9)),
}


@pytest.mark.parametrize("run", RUNS)
def test_every_citation_resolves(run):
    prose = methods.text(*RUNS[run])
    cited = bibliography.keys(prose)
    assert {"singlestrip", "synthstrip", "unet3d", "pytorch"} <= set(cited)
    assert set(cited) <= set(bibliography.read())
    assert prose.count("[@") == len(re.findall(r"\[@[^\]]+\]", prose))
    entries = re.findall(r"^@\w+\{([^,]+),", methods.references(prose), re.MULTILINE)
    assert entries == cited
    page = methods.page(prose)
    assert "@" not in re.sub(r"@(media|keyframes)", "", page)
    anchors = set(re.findall(r'href="#([^"]+)"', page)) - {"main"}
    assert anchors == set(cited)
    assert all(f'<li id="{key}">' in page for key in cited)


@pytest.mark.parametrize("run", RUNS)
def test_reads_as_text(run):
    prose = methods.text(*RUNS[run])
    assert not re.search(r"None|[{}]| ,| [.](?!\d)|[.][.]|n/a|  ", prose)
    assert max(map(len, prose.splitlines())) <= 99


def test_numbers_of_a_consensus_run():
    prose = flat(methods.text(*RUNS["consensus"]))
    for words in (
        "singlestrip-bids 9.8.7",
        "brain mask of one T1w scan was the label; 9 scans (5 T2w, 4 T1w) had no label, "
        "of which one could not be used",
        "64 × 64 × 64 voxels of 3.73 mm",
        f"into {labels.INSIDE} and {labels.OUTSIDE} classes",
        "for 1,000 steps with batches of 2 images, by Muon [@muon] at a learning rate of 0.02",
        "The best 4 of 9",
        "on 60 corrupted copies",
        "(.810 and .830)",
        f"on up to {guard.SAMPLE} unlabelled scans",
        "by the Dice overlap to be expected (.820 and .840)",
        "was not worse and was used",
        "3 scans (3 T1w) were masked",
        "median was .950 (range .900 to .970)",
        "on 2 CPU threads with Python 3.11.7, PyTorch 2.13.0",
        "random seed was 0",
    ):
        assert words in prose, words
    assert "From the second round" not in prose


def test_other_runs_say_other_things():
    paper = flat(methods.text(*RUNS["paper"]))
    assert "predicted by this network" in paper
    assert "avants2008" not in paper
    assert "In round 3 the best 6 of 9" in paper
    assert "# Masking" not in paper
    full = flat(methods.text(*RUNS["full"]))
    assert "for 100,000 steps with batches of 1 image, by Adam [@adam]" in full
    assert "subpixel" not in full
    assert "muon" not in full
    alone = flat(methods.text(*RUNS["no pool"]))
    assert "there were no unlabelled scans" in alone
    assert "No self-training took place" in alone
    assert "1 scan (1 T1w) was masked" in alone
    refused = copy.deepcopy(CARD)
    refused["guard"]["kept"] = "sl1"
    assert "did worse, and the first network was used" in flat(
        methods.text(refused, scores(4), [])
    )
    assert "GPU (NVIDIA X)" in methods.text(
        {**CARD, "versions": {**CARD["versions"], "gpu": "NVIDIA X"}}, scores(4), []
    )


def test_traces_of_an_earlier_model_are_left_out():
    prose = methods.text(changed(rounds=0), scores(4), masks(0.9, model="other"))
    assert "could not be used" not in prose
    assert "No self-training" in prose
    assert "# Masking" not in prose


def test_references_are_read_whole():
    known = bibliography.read()
    assert len(known) > 20
    assert known["unet3d"].short == "Çiçek et al., 2016"
    assert known["adam"].short == "Kingma and Ba, 2015"
    assert known["nilearn"].short == "Nilearn contributors"
    assert "Ga\u00ebl" in known["scikitlearn"].text
    for reference in known.values():
        assert not set("{}\\") & set(reference.text)
        assert ".." not in reference.text
        assert reference.fields["title"]


def test_the_app_writes_them_and_writes_them_again(heads, trained, tmp_path):
    card = json.loads((trained / MODEL / "model.json").read_text())
    logs = trained / "logs"
    prose = flat((logs / "CITATION.md").read_text())
    assert card["versions"]["torch"] in prose
    assert "The best 3 of 3" in prose
    assert "4 scans" in prose
    names = {"CITATION.md", "CITATION.bib", "CITATION.html"}
    names |= {"CITATION.tex"} if shutil.which("pandoc") else set()
    assert {path.name for path in logs.iterdir() if path.is_file()} == names
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    shutil.rmtree(out / "logs")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert cli.main([str(heads), str(out), "participant", "--boilerplate-only"]) == 0
    assert {path.name for path in (out / "logs").iterdir() if path.is_file()} == names
    assert all(p.stat().st_mtime_ns == then for p, then in before.items())


def test_no_model_no_text(heads, tmp_path, capfd):
    words = [str(heads), str(tmp_path / "out"), "group", "--boilerplate-only"]
    assert cli.main(words) == 66
    assert "no model here to write about" in capfd.readouterr().err

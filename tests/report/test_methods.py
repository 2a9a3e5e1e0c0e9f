"""Methods text: every number true, every citation resolved."""

import copy
import importlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from builders import MODEL

from singlestrip_bids import cli
from singlestrip_bids.bids.derivatives import Derivatives
from singlestrip_bids.config import PRESETS, semisam_o1
from singlestrip_bids.machine import files
from singlestrip_bids.method.classes import INSIDE, OUTSIDE
from singlestrip_bids.method.model import FORMAT
from singlestrip_bids.report import citations, methods
from singlestrip_bids.report.subject import Row

CARD = {
    "format": FORMAT,
    "network": "round-1.safetensors",
    "self_trained": True,
    "guard": {
        "kept": "round-1",
        "standings": {
            "sl1": {"copies": 0.81, "pool": 0.82},
            "round-1": {"copies": 0.83, "pool": 0.84},
        },
        "sample": 8,
        "failed": [],
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


def masks(*expected: float, model: str = "abc", **more) -> list[Row]:
    fields = [{"ExpectedDice": value, "ModelSHA256": model, **more} for value in expected]
    return [Row(f"sub-{i}/anat/sub-{i}_T1w.nii.gz", f, {}, ()) for i, f in enumerate(fields)]


def changed(**method) -> dict:
    card = copy.deepcopy(CARD)
    card["method"] |= method
    return card


def refused() -> dict:
    """Give the card of a run whose guard kept the first network."""
    card = copy.deepcopy(CARD)
    card["guard"] = {
        "kept": "sl1",
        "standings": {
            "sl1": {"copies": 0.81, "pool": 0.82},
            "round-1": {"copies": 0.73, "pool": 0.7},
        },
        "sample": 8,
        "failed": [],
    }
    return card | {
        "network": "sl1.safetensors",
        "sha256": {"sl1.safetensors": "abc"},
        "self_trained": False,
    }


def alone() -> dict:
    """Give the card of a run without unlabelled scans."""
    card = copy.deepcopy(CARD) | {"unlabelled": [], "self_trained": False}
    card["guard"]["sample"] = 0
    return card


def phantoms() -> dict:
    """Give the card of the model that ships."""
    return alone() | {"label": [], "phantoms": True}


def flat(prose: str) -> str:
    return " ".join(prose.split())


PHANTOM = {"name": "phantom", "sha256": "abc"}
SEMISAM = CARD | {"method": semisam_o1(PRESETS["quick"]).to_dict(), "encoder": PHANTOM}

RUNS = {
    "consensus": (CARD, scores(4), masks(0.9, 0.95, 0.97)),
    "paper": (changed(pseudo_labels="network", rounds=3), scores(4, 5, 6), []),
    "full": ({**CARD, "method": PRESETS["full"].to_dict()}, scores(4), masks(0.9)),
    "no pool": (alone(), [], masks(0.9)),
    "phantoms": (phantoms(), [], masks(0.9)),
    "random weights": (changed(init="random"), scores(4), masks(0.9)),
    "semisam-o1": (SEMISAM, scores(8, 8, 8), masks(0.9)),
    "all ways": (changed(pseudo_labels="all") | {"encoder": PHANTOM}, scores(4), masks(0.9)),
    "refused": (refused(), scores(4), masks(0.9, 0.95)),
    "any orientation": (changed(any_orientation=True), scores(4), masks(0.9)),
}


@pytest.mark.parametrize(
    ("found", "said"),
    [(None, "one half; the"), (0.5, "one half; the"), (0.653, "where it had said .653);")],
)
def test_threshold_is_told_where_it_moved(found, said):
    prose = flat(methods.text({**CARD, "threshold": found}, scores(4), masks(0.9)))
    assert said in prose


def test_any_orientation_is_told():
    assert "Heads were allowed any orientation" in flat(methods.text(*RUNS["any orientation"]))
    assert "any orientation" not in flat(methods.text(*RUNS["consensus"]))


def test_extended_heads_are_told():
    prose = flat(methods.text({**CARD, "continued": True}, scores(4), masks(0.9)))
    assert (
        "its field of view was extended beyond, as it is at that end, in half of the images."
        in prose
    )
    assert "was extended" not in flat(methods.text(CARD, scores(4), masks(0.9)))


@pytest.mark.parametrize("run", RUNS)
def test_every_citation_resolves(run):
    prose = methods.text(*RUNS[run])
    cited = citations.keys(prose)
    idea = "pumba" if run == "phantoms" else "singlestrip"
    assert {idea, "synthstrip", "unet3d", "pytorch"} <= set(cited)
    assert set(cited) <= set(citations.read())
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
        "64 × 64 × 64 voxels of 3.73 mm, and their intensities scaled from the 0.5th to the 99th",
        "of 4 levels with instance normalisation and a sub-pixel stem [@subpixel]",
        "A share of 50 % of them was made from the scan itself",
        "A pseudo-label of every usable unlabelled scan was made as the consensus",
        "mean over 4 copies of the scan",
        "trained on axial slices of the label for 500 epochs",
        "In this training 80 % of the images were made from the scans themselves, 80 % of those",
        f"into {INSIDE} and {OUTSIDE} classes",
        "for 300 steps with batches of 2 images, by Muon [@muon] at a learning rate of 0.02",
        "which begins with weights learnt on random shapes alone [@pumba]",
        "The best 4 of 8, in proportion",
        "on 60 corrupted copies",
        "(.810 and .830)",
        "on 8 unlabelled scans",
        "by the Dice overlap to be expected (.820 and .840)",
        "the fine-tuned network was used, since none was more than .01 lower",
        "In all, 3 scans (3 T1w) were masked",
        "a line fitted to 60 corrupted copies of the labelled scan, to as many of 8 unlabelled "
        "scans and to these as they are, whose masks were the label propagated by registration,",
        "median of the 3 estimates was .950 (range .900 to .970)",
        "on 2 CPU threads with Python 3.11.7, PyTorch 2.13.0",
        "random seed was 0",
    ):
        assert words in prose, words
    assert "From the second round" not in prose


def test_numbers_of_a_run_with_the_network_alone():
    paper = flat(methods.text(*RUNS["paper"]))
    for words in (
        "unlabelled scan was predicted by this network. The prediction was the mean over 4 copies",
        "the Dice overlap of both ranked them",
        "In round 1 the best 4 of 8",
        "In round 3 the best 6 of 8",
        "From the second round on, the pseudo-labels were those of the network of the round ",
        "for 700 steps with batches of 2 images in each round",
    ):
        assert words in paper, words
    for absent in ("avants2008", "registration", "# Masking", "consensus"):
        assert absent not in paper


def test_random_weights_are_told():
    prose = flat(methods.text(*RUNS["random weights"]))
    assert "and uses no network weights and no labels from elsewhere" in prose
    assert "pumba" not in prose


def test_semisam_o1_is_told():
    prose = flat(methods.text(*RUNS["semisam-o1"]))
    for words in (
        "by its likeness to prototypes of the label [@semisam] in the features of a network that "
        "has seen random shapes alone [@pumba].",
        "the tenth of them of the highest entropy was replaced by a vote of the five scans",
        "A new network was trained on images made from the label and from the kept pseudo-labels, "
        "both equally often, with the cross-entropy and a soft Dice loss",
        "the agreement with a moving average of the weights [@meanteacher] that rose over 30 %",
        "for 300 steps with batches of 2 images in each round",
    ):
        assert words in prose, words
    assert "fine-tuned on images" not in prose
    card = SEMISAM | {"encoder": {"name": "sam.pth", "sha256": "abc"}}
    card["method"] = card["method"] | {"refinement": "regions"}
    prose = flat(methods.text(card, scores(8, 8, 8), masks(0.9)))
    assert "in the features of a frozen network (sam.pth)" in prose
    assert "corrected by a vote of the five voxels" in prose


def test_all_ways_are_told():
    prose = flat(methods.text(*RUNS["all ways"]))
    assert (
        "with a quarter of the votes for likeness to prototypes of the label [@semisam]" in prose
    )
    assert "averaged with that of the two guesses in the first round," in prose


def test_numbers_of_a_run_whose_guard_refused():
    prose = flat(methods.text(*RUNS["refused"]))
    for words in (
        "by the Dice overlap with the truth (.810 and .730)",
        "to be expected (.820 and .700)",
        "the first network was used, since one of these was more than .01 lower",
        "In all, 2 scans (2 T1w) were masked",
        "median of the 2 estimates was .925 (range .900 to .950)",
    ):
        assert words in prose, words
    assert "the fine-tuned network was used" not in prose


def test_numbers_of_a_run_without_unlabelled_scans():
    alone = flat(methods.text(*RUNS["no pool"]))
    for words in (
        "The brain mask of one T1w scan was the label; there were no unlabelled scans.",
        "No self-training took place; the network trained on the label alone was used",
        "In all, 1 scan (1 T1w) was masked",
        "a convolutional autoencoder trained on slices of the label [@galati2021]",
        "The estimate was .900; no second label was used",
    ):
        assert words in alone, words
    for absent in ("avants2008", "registration", "pseudo-label", "range"):
        assert absent not in alone


def test_drafts_are_told_from_masks_of_a_label():
    prose = flat(methods.text(*RUNS["phantoms"]))
    for words in (
        "Drafts of brain masks were made",
        "No real image and no label took part.",
        "Every head was brought to the same width.",
        "corrupted phantoms, with 90 % intervals",
        "no label was used",
    ):
        assert words in prose, words
    for absent in ("singlestrip]", "labelled", "pseudo-label", "registration"):
        assert absent not in prose


def test_odd_scans_are_counted():
    odd = masks(0.9, 0.8, WorkingVoxelSizeMm=1.9) + masks(
        0.95, Averaged="The mask is of the mean over time of 3 volumes."
    )
    unweighted = "The mask is of the mean of the 2 volumes without diffusion weighting, of 3."
    odd += masks(0.95, Averaged=unweighted)
    prose = flat(methods.text(CARD, scores(4), odd))
    assert "Of one of them, a time series, the mean over time was taken" in prose
    assert "Of one of them, a diffusion series, the mean of the volumes without" in prose
    assert "The heads of two were much wider or narrower than the labelled one" in prose
    assert "time series" not in flat(methods.text(*RUNS["consensus"]))


def test_large_pools_are_sampled():
    pool = [f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in range(99)]
    rows = [{"round": "1", "scan": s, "kept": "True", "note": "n/a"} for s in pool]
    looked = CARD["guard"] | {"sample": 24, "failed": pool[:2]}
    prose = flat(methods.text({**CARD, "unlabelled": pool, "guard": looked}, rows, []))
    assert "on 24 unlabelled scans" in prose
    assert "The best 99 of 99" in prose
    assert "of which two could not be used" in prose


def test_other_runs_say_other_things():
    full = flat(methods.text(*RUNS["full"]))
    assert "for 100,000 steps with batches of 1 image, by Adam [@adam]" in full
    assert "subpixel" not in full
    assert "muon" not in full
    assert "GPU (NVIDIA X)" in methods.text(
        {**CARD, "versions": {**CARD["versions"], "gpu": "NVIDIA X"}}, scores(4), []
    )


def test_traces_of_an_earlier_model_are_left_out():
    prose = methods.text(changed(rounds=0), scores(4), masks(0.9, model="other"))
    assert "could not be used" not in prose
    assert "No self-training" in prose
    assert "# Masking" not in prose


def test_references_are_read_whole():
    known = citations.read()
    assert len(known) > 20
    assert list(citations.sources()) == list(known)
    assert citations.short(known["unet3d"]) == "Çiçek et al., 2016"
    assert citations.short(known["adam"]) == "Kingma and Ba, 2015"
    assert citations.short(known["nilearn"]) == "Nilearn contributors"
    assert citations.short(known["pybids"]) == "Yarkoni et al., 2019"
    for key, entry in known.items():
        text = citations.whole(entry)
        assert not set("{}\\") & set(text), key
        assert ".." not in text
        assert entry.fields["title"]
        assert "href" in text or key in {"arsigny2006", "pytorch", "scikitlearn"}


def pandoc() -> str | None:
    """Find pandoc: that of the system, or that of the package pypandoc-binary."""
    if found := shutil.which("pandoc"):
        return found
    try:
        return importlib.import_module("pypandoc").get_pandoc_path()
    except (ImportError, OSError):
        return None


def test_pandoc_turns_it_into_tex(tmp_path, monkeypatch):
    found = pandoc()
    if found is None:
        pytest.skip("pandoc is not installed (pip install pypandoc-binary)")
    monkeypatch.setenv("PATH", str(Path(found).parent), prepend=os.pathsep)
    files.write_json(tmp_path / MODEL / "model.json", CARD)
    files.write_tsv(tmp_path / MODEL / "scores.tsv", scores(4))
    methods.write(Derivatives(tmp_path), tmp_path / MODEL)
    logs = tmp_path / "logs"
    tex = (logs / "CITATION.tex").read_text(encoding="utf-8")
    cited = [
        key for group in re.findall(r"\\cite[pt]?\{([^}]+)\}", tex) for key in group.split(",")
    ]
    prose = (logs / "CITATION.md").read_text(encoding="utf-8")
    assert list(dict.fromkeys(map(str.strip, cited))) == citations.keys(prose)
    assert r"\section{Brain extraction}" in tex
    assert r"\bibliography{CITATION.bib}" in tex  # beside it: no path of this machine
    assert "64 × 64 × 64" in tex or r"64 \times 64" in tex
    assert "[@" not in tex


def test_no_pandoc_leaves_no_earlier_tex(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    files.write_json(tmp_path / MODEL / "model.json", CARD)
    files.write_tsv(tmp_path / MODEL / "scores.tsv", scores(4))
    files.write_text(tmp_path / "logs" / "CITATION.tex", "earlier")
    methods.write(Derivatives(tmp_path), tmp_path / MODEL)
    assert (tmp_path / "logs" / "CITATION.md").is_file()
    assert not (tmp_path / "logs" / "CITATION.tex").exists()


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
    kept = [p for p in out.rglob("*") if p.is_file() and p.suffix in (".gz", ".json", ".tsv")]
    before = {p: p.stat().st_mtime_ns for p in [*kept, *out.rglob("*.safetensors")]}
    assert cli.main([str(heads), str(out), "participant", "--reports-only"]) == 0
    assert {path.name for path in (out / "logs").iterdir() if path.is_file()} == names
    assert all(p.stat().st_mtime_ns == then for p, then in before.items())


def test_no_model_no_text(heads, tmp_path):
    out = tmp_path / "out"
    assert cli.main([str(heads), str(out), "group", "--reports-only"]) == 0
    assert (out / "group.html").is_file()
    assert not list((out / "logs").glob("CITATION*"))

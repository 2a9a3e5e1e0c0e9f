"""The group level: one label and many unlabelled scans become a model.

label -> autoencoder -> SL-1 -> [guess, rank, select, refit, fine-tune] x rounds -> fine network
-> guard -> card

Several processes train and rank together; all else that has one result is made by the first.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from .bids import ratings
from .bids.derivatives import Derivatives
from .bids.label import find_label
from .bids.scans import Scan, selected
from .config import WITH_PROTOTYPES, RunConfig
from .errors import ScanFailed
from .machine.files import fingerprint, sha256, write_tsv
from .machine.runtime import Runtime
from .method import model
from .method.beginning import begin
from .method.budget import keep_to
from .method.classes import Source, extend_fields_of_view
from .method.guard import complete
from .method.networks import Autoencoder
from .method.propagation import AGREED
from .method.pseudolabels import guesser, looker, pseudo_label, rank, viewer
from .method.pupil import learn
from .method.refinement import corrector
from .method.trainer import (
    Trained,
    Trainer,
    fine_tune,
    round_name,
    train_autoencoder,
    train_first,
)
from .report import group as page
from .report import methods

LOG = logging.getLogger("singlestrip_bids")


def run(config: RunConfig, runtime: Runtime) -> None:
    """Train a model from one label and write it under ``output_dir/code/singlestrip``.

    Raises
    ------
    ScanFailed
        Some unlabelled scans could not be used; the model was made without them.
    SingleStripError
        The label or the selection does not allow a model.
    """
    scans = selected(config)
    given = config.label_subject, config.derivatives, config.label_mask
    labels = find_label(config.bids_dir, scans, *given)
    taken = {label.scan.path for label in labels}
    unlabelled = [scan for scan in scans if scan.path not in taken]
    rated = ratings.read(config.ratings).of(scan.relative for scan in unlabelled)
    pool = [scan for scan in unlabelled if scan.relative not in rated.rejected]

    trainer, sources = begin(config, labels, runtime)
    if config.time:
        trainer = keep_to(trainer, sources, pool, config.time)
    heads = extend_fields_of_view(sources, trainer.method.size)
    out = Derivatives(config.output_dir)
    if runtime.main:
        out.start(config.bids_dir)
        page.draw_sources(out, heads, trainer)

    autoencoder = train_autoencoder(trainer, sources)
    first = train_first(trainer, sources, heads)
    last, scores = self_train(trainer, pool, sources, first, autoencoder, rated.accepted, out)
    fine = None
    if trainer.method.fine_steps and last is not first:
        sure = {row["scan"] for row in scores if row["kept"] or (row["agreement"] or 0) >= AGREED}
        pupils = [scan for scan in pool if scan.relative in sure]
        fine = learn(trainer, labels, sources, pupils, last)
    if not runtime.main:
        return

    failed = {row["scan"]: row["note"] for row in scores if row["note"]}
    usable = [scan for scan in pool if scan.relative not in failed]
    extended = len(heads) > len(sources)
    facts = model.facts(labels, pool, rated, trainer.frame, trainer.method, extended)
    facts["label_kept"] = config.propagation
    if trainer.encoder:
        facts["encoder"] = {"name": trainer.encoder.name, "sha256": trainer.encoder.sha256}
    # what was trained from a new network is a method of its own: SL-1 is no candidate then
    several = trainer.method.warm_start and last is not first
    candidates = [first, last] if several else [last]
    verdict = complete(trainer, usable, sources, candidates, autoencoder, fine, facts)
    if verdict:
        failed |= verdict.failed
        page.draw_networks(out, trainer, verdict)
    page.write(out, trainer.folder)
    methods.write(out, trainer.folder)
    if failed:
        raise ScanFailed(
            f"{len(failed)} of {len(pool)} unlabelled scans could not be used; the model was made "
            "without them:\n" + "\n".join(f"  {note}" for note in failed.values())
        )


def self_train(
    trainer: Trainer,
    pool: Sequence[Scan],
    sources: Sequence[Source],
    first: Trained,
    autoencoder: Autoencoder,
    accepted: Collection[str],
    out: Derivatives,
) -> tuple[Trained, list[dict[str, Any]]]:
    """Fine-tune round by round (SingleStrip, section 2.4).

    Return the last network, and the score of every scan in every round.
    """
    method, last, scores = trainer.method, first, list[dict[str, Any]]()
    if not pool:
        LOG.warning(
            "NO UNLABELLED SCAN: the model is the network trained on the label alone (SL-1); "
            "add scans to the dataset or widen --modalities to self-train."
        )
        return first, scores
    for number in range(1, method.rounds + 1):
        name, way = round_name(number), method.pseudo_labels if number == 1 else "network"
        key, correct = fingerprint(last.key, method.copies, way), None
        if trainer.encoder and way in WITH_PROTOTYPES:
            key = fingerprint(key, trainer.encoder.key)
        if number > 1 and method.refinement != "none":
            key = fingerprint(key, method.refinement, [scan.relative for scan in pool])
            seen = viewer(trainer, last.network)
            correct = corrector(trainer, pool, sources, seen, name, key)
        guess = guesser(trainer, last.network, sources, way, correct)
        judged = fingerprint(key, asdict(method.quality))
        draw = partial(page.draw_pseudo, out, number)
        look = None if method.any_orientation else looker(trainer, last.network)
        ranked = rank(trainer, pool, guess, autoencoder, name, judged, accepted, draw, look)
        scores += [{"round": number, **asdict(candidate)} for candidate in ranked]
        if trainer.runtime.main:
            write_tsv(trainer.folder / "scores.tsv", scores)
        kept = [scan for scan, one in zip(pool, ranked, strict=True) if one.kept]
        if not kept:
            LOG.warning(
                "NO USABLE PSEUDO-LABEL in round %d: the model stays %s.", number, last.name
            )
            break
        checksums = [sha256(scan.path) for scan in kept]
        key = fingerprint(key, checksums, asdict(method.finetuning_synthesis))
        pseudo = pseudo_label(trainer, kept, name)
        last = fine_tune(trainer, last, name, key, sources, pseudo)
    return last, scores


def remake(config: RunConfig, runtime: Runtime) -> None:
    """Write the page of the group and the methods text from what is on disk."""
    out = Derivatives(config.output_dir)
    folder = config.model or out.model_dir
    page.write(out, folder)
    methods.write(out, folder)

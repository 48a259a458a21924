"""Temperature and thresholds that make probabilities honest and decisions good, fitted to the validation part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from segline.data.cases import Case
from segline.data.datamodule import SegmentationDataModule
from segline.evaluation.evaluate import Evaluator, Options
from segline.inference.blend import PROFILES
from segline.inference.members import locate_all
from segline.inference.predictor import Predictor, Settings, calibration_path, digest
from segline.labels import Labels
from segline.metrics.calibration import Calibration, Reliability, apply_temperature
from segline.metrics.fit import fit_temperature, fit_thresholds
from segline.metrics.sample import PixelSample

#: Pixels that temperature and thresholds are fitted to.
_FITTED = 2**18


def calibrate(settings: Settings, data: SegmentationDataModule) -> Calibration:
    """Fit temperature and thresholds to the validation part, and leave them beside the checkpoint.

    Raises:
        ValueError: There are several checkpoints or predictions of one, or no validation part.
    """
    paths = locate_all(settings.checkpoint)
    if len(paths) > 1:
        raise ValueError("calibrate=true fits one checkpoint; name one of them at a time")
    # A temperature divides the logits of each prediction, before they are averaged: fitted to means it would be that of none.
    if averaged := _averaged(settings):
        raise ValueError(
            f"calibrate=true fits single predictions, but {averaged} averages several; leave it out, and set it with "
            "calibrated=true once the fit is there"
        )
    if not data.cases["val"]:
        raise ValueError(
            "calibrate=true needs a validation part; set data.val=0.2, of two groups of cases or more, and split to val or test"
        )
    plain = Predictor(paths, replace(settings, calibrated=False))
    labels = plain.labels
    sample = _sample(Evaluator(plain, data, Options()), data.cases["val"])
    probs, mask = sample.probs, sample.mask
    temperature = fit_temperature(probs, mask, labels)
    scaled = apply_temperature(probs, temperature, labels)
    calibration = Calibration(
        temperature,
        fit_thresholds(scaled, mask, labels),
        "val",
        len(mask),
        digest(paths[0]),
        _ece(probs, mask, labels),
        _ece(scaled, mask, labels),
    )
    calibration.save(calibration_path(paths[0]))
    shown = ", ".join(f"{name} {t:.2f}" for name, t in zip(labels.names, calibration.thresholds or [], strict=True))
    print(
        f"temperature {temperature:.2f}: calibration error {calibration.ece_before:.3f} -> {calibration.ece_after:.3f}; "
        f"thresholds {shown}; left in {calibration_path(paths[0])}"
    )
    return calibration


def _averaged(settings: Settings) -> str | None:
    """The first setting that makes probabilities a mean of several predictions."""
    several = {
        "tta": bool(settings.tta),
        "dropout_passes": settings.dropout_passes > 1,
        f"blend={settings.blend}": settings.blend in PROFILES,
    }
    return next((name for name, is_set in several.items() if is_set), None)


def _ece(probs: NDArray[np.float32], mask: NDArray[np.uint8], labels: Labels) -> float:
    reliability = Reliability(labels)
    reliability.update(probs.T, mask if labels.exclusive else mask.T)
    return reliability.ece


def _sample(evaluator: Evaluator, cases: Sequence[Case]) -> PixelSample:
    """An even sample of the pixels of some cases."""
    sample = PixelSample(evaluator.labels, _FITTED)
    for case in tqdm(cases, unit="case", desc="calibrate"):
        for _, probs, truth in evaluator.pieces(*evaluator.data.open(case)):
            sample.update(probs, truth)
    return sample

"""Every metric of ``streaminfer score`` with its type and explanation; the reference page is generated from this module."""

from __future__ import annotations

from worker.telemetry.names import Metric

_OF_VERSION = ("pipeline", "version")
QUALITY_RESULTS = Metric(
    "quality_results",
    "gauge",
    "results",
    "Of `streaminfer score`, as all quality metrics: results by what became of them: labelled (their label came), unlabelled (it did not within labels.wait_s) or given_up (more than labels.max_pending waited). Like every quality metric it covers the partitions of this process from the first result on, also across restarts: add processes up.",
    (*_OF_VERSION, "outcome"),
)
QUALITY_COVERAGE = Metric(
    "quality_coverage", "gauge", "", "Share of the results with an outcome that have a label.", _OF_VERSION
)
QUALITY_ACCURACY = Metric(
    "quality_accuracy", "gauge", "", "Share of the compared items whose class is right.", _OF_VERSION
)
QUALITY_ACCURACY_BOUND = Metric(
    "quality_accuracy_bound",
    "gauge",
    "",
    "The 95 % interval of the accuracy (Wilson): bound is lower or upper.",
    (*_OF_VERSION, "bound"),
)
QUALITY_WINDOW_ACCURACY = Metric(
    "quality_window_accuracy",
    "gauge",
    "",
    "Accuracy in the newest window that is over and has labels; for alerts.",
    _OF_VERSION,
)
QUALITY_PRECISION = Metric("quality_precision", "gauge", "", "Precision of a class.", (*_OF_VERSION, "class"))
QUALITY_RECALL = Metric("quality_recall", "gauge", "", "Recall of a class.", (*_OF_VERSION, "class"))
QUALITY_F1 = Metric("quality_f1", "gauge", "", "F1 of a class.", (*_OF_VERSION, "class"))
QUALITY_SUPPORT = Metric(
    "quality_support",
    "gauge",
    "items",
    "Items, or true boxes, that are of a class.",
    (*_OF_VERSION, "class"),
)
QUALITY_CONFUSION = Metric(
    "quality_confusion",
    "gauge",
    "items",
    "Items of a class (`class`) that were taken for one (`predicted`); the 400 largest counts.",
    (*_OF_VERSION, "class", "predicted"),
)
QUALITY_MAE = Metric("quality_mae", "gauge", "", "Mean absolute error of numbers.", _OF_VERSION)
QUALITY_RMSE = Metric("quality_rmse", "gauge", "", "Root mean square error of numbers.", _OF_VERSION)
QUALITY_BIAS = Metric("quality_bias", "gauge", "", "Mean of predicted minus true.", _OF_VERSION)
QUALITY_MAP = Metric(
    "quality_map_50",
    "gauge",
    "",
    "Mean over the classes of the average precision of boxes, at an intersection over union of 0.5 (101 points, as COCO).",
    _OF_VERSION,
)
QUALITY_MAP_ALL = Metric(
    "quality_map_50_95",
    "gauge",
    "",
    "The same, and mean over intersections over union of 0.5, 0.55 ... 0.95: COCO's mAP.",
    _OF_VERSION,
)
QUALITY_IOU = Metric(
    "quality_mean_iou", "gauge", "", "Mean intersection over union of the boxes that match.", _OF_VERSION
)
QUALITY_DELAY = Metric(
    "quality_label_delay_seconds",
    "gauge",
    "seconds",
    "How long after its result a label came: quantile is 0.5 or 0.99.",
    (*_OF_VERSION, "quantile"),
)
QUALITY_WAITING = Metric(
    "quality_waiting", "gauge", "records", "Results and labels that wait for each other now.", ("kind",)
)
QUALITY_LEFT_OUT = Metric(
    "quality_left_out",
    "gauge",
    "records",
    "Labels and results that make no pair, by what they are, such as labels_duplicate, labels_unmatched, labels_late or results_duplicate.",
    ("what",),
)

QUALITY = (
    QUALITY_RESULTS,
    QUALITY_COVERAGE,
    QUALITY_ACCURACY,
    QUALITY_ACCURACY_BOUND,
    QUALITY_WINDOW_ACCURACY,
    QUALITY_PRECISION,
    QUALITY_RECALL,
    QUALITY_F1,
    QUALITY_SUPPORT,
    QUALITY_CONFUSION,
    QUALITY_MAE,
    QUALITY_RMSE,
    QUALITY_BIAS,
    QUALITY_MAP,
    QUALITY_MAP_ALL,
    QUALITY_IOU,
    QUALITY_DELAY,
    QUALITY_WAITING,
    QUALITY_LEFT_OUT,
)
"""What ``streaminfer score`` exposes."""

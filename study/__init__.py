"""Ablation studies of image super-resolution: declare, measure, record, judge."""


class StudyError(Exception):
    """Something its reader can put right; the message says what, where, and how."""

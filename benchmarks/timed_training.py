"""Training by RecBole's trainer that ends when its time is over."""

from time import perf_counter


class OutOfTime(Exception):
    """The best epoch so far counts."""


def fit_within(trainer, train, valid, started, seconds):
    """Fit until early stopping, or until the epoch in which the time ends.

    Args:
        trainer: RecBole's; it saves its best epoch.
        train: loader of the training part.
        valid: loader of the validation part.
        started: when the time began, by `perf_counter`.
        seconds: how much there is.

    Returns:
        Seconds since the start and validation score of each epoch, and whether it was cut off.
    """
    epochs = []

    def after_epoch(epoch, score):
        epochs.append([perf_counter() - started, float(score)])
        if perf_counter() - started > seconds:
            raise OutOfTime

    try:
        trainer.fit(train, valid, saved=True, show_progress=False, callback_fn=after_epoch)
    except OutOfTime:
        return epochs, True
    return epochs, False

"""Training by RecBole's trainer that ends when its time is over."""

from time import perf_counter


class OutOfTime(Exception):
    """The best epoch so far counts."""


def fit_within(trainer, train, valid, started, seconds):
    """Fit until early stopping, or until the time ends, which may be within an epoch.

    Args:
        trainer: RecBole's; it saves its best epoch.
        train: loader of the training part.
        valid: loader of the validation part.
        started: when the time began, by `perf_counter`.
        seconds: how much there is.

    Returns:
        Seconds since the start and validation score of each epoch, and whether it was cut off.
    """
    epochs, deadline = [], started + seconds

    def after_epoch(epoch, score):
        epochs.append([perf_counter() - started, float(score)])
        if perf_counter() > deadline:
            raise OutOfTime

    end_by(train, deadline)
    try:
        trainer.fit(train, valid, saved=True, show_progress=False, callback_fn=after_epoch)
    except OutOfTime:
        return epochs, True
    return epochs, False


def end_by(loader, deadline):
    """Let a loader's round end with the time: what was learned so far is worth a look.

    The first batch always comes, so that there is a loss.
    """

    class Ending(type(loader)):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if number and perf_counter() > deadline:
                    return
                yield batch

    loader.__class__ = Ending

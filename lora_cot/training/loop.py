"""The part of the trainer that knows nothing of stages: the order of the data, checkpoints, and what keeps a run from harm."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from torch.utils.data import DataLoader
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from lora_cot.backbones.zero import size, whole
from lora_cot.checkpoints import store
from lora_cot.checkpoints.store import Checkpoint
from lora_cot.errors import Problem, RunError, StoppedError, TrainingError
from lora_cot.training.guards import Guards
from lora_cot.training.order import OrderedTrainer
from lora_cot.training.rng import RandomState, undisturbed

STATE_FILE, SUMS_FILE = "trainer_state.json", "sums_{}.pt"
MARGIN = 1.2
"""A checkpoint may be larger than the last one by this."""
LAST_INSTEAD = "the same command with training.load_best_model_at_end=false takes the last weights"
"""What is left to do where the best checkpoint is damaged."""
OTHER_ADAPTER = "take the peft that it was written with, or set another name= to begin anew"


@dataclass(frozen=True)
class Keeping:
    """What a trainer needs to be stopped anywhere and to go on as if it had not been."""

    run: Path
    """The run's folder."""
    root: Path
    """Its checkpoints."""
    about: Mapping[str, Any]
    """What its checkpoints say of where they come from."""
    start: Checkpoint | None
    """Where it goes on; none to begin."""
    hang_after: float
    """Seconds without progress, after which that is told."""


class SafeTrainer(OrderedTrainer):
    """A trainer that is stopped and gone on with at any moment without a trace in what it learns.

    A checkpoint holds adapter, optimizer and schedule, and of the moment after its step the random numbers, what was
    summed up since the last log, and the trainer's state; it is read and written through `checkpoints.store`. An
    evaluation leaves the random numbers alone.
    """

    def __init__(self, keeping: Keeping, **options: Any):
        """
        Args:
            keeping: where checkpoints go, and the one to go on from.
            options: OrderedTrainer's own.
        """
        super().__init__(**options)
        self._trained: Any = self.model
        self._keeping = keeping
        self._keep, self.args.save_total_limit = self.args.save_total_limit, None  # transformers removes the last one too
        patience = timedelta(seconds=self.args.ddp_timeout)
        self.guards = Guards(keeping.run, keeping.root, keeping.hang_after, self._samples_of, patience)
        self.add_callback(self.guards.stopper)
        self._begin_worker = self.guards.workers
        self._after_step: RandomState | None = None
        self._sums_after_step: dict[str, Any] | None = None
        self._flos_after_step: tuple[Any, Any] = (0, 0)
        self._evaluated = -1
        self._evaluates = self._is_over = False
        self._seconds, self._begin = 0.0, time.perf_counter()
        self._last_saved = -1

    def run(self) -> TrainOutput:
        """Train to the end, from the beginning or from a checkpoint; SIGTERM saves and ends it.

        Raises:
            StoppedError: by SIGTERM; what was trained is saved.
            TrainingError: a loss that is not finite, or a checkpoint that could not be written.
        """
        start = self._keeping.start
        if start is not None:
            self._seconds, self._last_saved = start.about["seconds"], start.step
            self.args.eval_on_start = False
        self._begin = time.perf_counter()
        with self.guards.on_duty():
            try:
                return self.train(resume_from_checkpoint=str(start.folder) if start else None)
            except StoppedError as stopped:
                step = self.state.global_step
                # Without what was computed for the step that is not finished.
                self.state.total_flos, self.current_flos = self._flos_after_step
                if step and (step > self._last_saved or self._evaluates):
                    self._save_checkpoint(self.model, None)
                saved = f"step {step} is saved" if step else "nothing was trained yet"
                remedy = "the same command goes on from there"
                raise StoppedError(Problem("", f"{stopped.problems[0].what}: {saved}", remedy), stopped.exit_code) from None

    @property
    def seconds(self) -> float:
        """Time spent training, interruptions left out."""
        return self._seconds + time.perf_counter() - self._begin

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this rank.

        Raises:
            RunError: other samples would make a step than in the run that is gone on with.
        """
        loader, start = super().get_train_dataloader(), self._keeping.start
        if start is not None and start.about["order"] != self._order:
            what = "other samples would make a step than before"
            cure = f"{start.about['samples_a_step']} samples a step, over processes, batches and accumulation, as before"
            raise RunError(Problem(str(start.folder), what, f"take {cure}, and the same training.max_length"))
        return loader

    def _run_epoch(self, **where: Any) -> None:  # type: ignore[override]
        """One pass over the data; none if training was over when its checkpoint was written."""
        if self._is_over:
            self.control.should_training_stop = True
            return
        goes_on = self._keeping.start is not None and where["epoch"] == where["epochs_trained"]
        self._begin_epoch(where["epoch"])
        if goes_on and self._sums_after_step is not None:
            self._restore_sums(self._sums_after_step)
        self.guards.begin_epoch(where["steps_trained_in_current_epoch"] if goes_on else 0)
        self.guards.step = self.state.global_step
        super()._run_epoch(**where)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """With a checkpoint loaded, make up for the evaluation in which its run was stopped."""
        prepared, start = super()._prepare_for_training(*args, **kwargs), self._keeping.start
        if start is not None:
            if self.state.best_global_step is not None:  # the run's folder may be called otherwise from here
                best = self._keeping.root / f"{store.PREFIX}{self.state.best_global_step}"
                self.state.best_model_checkpoint = str(best)
                if self.args.load_best_model_at_end:
                    store.read(best, LAST_INSTEAD)  # damaged, it is no good at the end: better told now
            self.guards.step = self.state.global_step
            with undisturbed():
                self._load_rng_state(str(start.folder))
                self._after_step = RandomState.now()
            self._flos_after_step = (self.state.total_flos, self.current_flos)
            self._sums_after_step = self._saved_sums(start)
            if start.about["pending"]:
                self._determine_best_metric(self._evaluate(None, None), None)
                self._save_checkpoint(self.model, None)
            self._is_over = start.about["finished"] or self.control.should_training_stop
        return prepared

    def _load_rng_state(self, checkpoint: str | None) -> None:
        start = self._keeping.start
        if start is not None and start.about["ranks"] != self.args.world_size:  # a rank's own numbers do not exist
            set_seed(self.args.seed + 1000 * start.step, device_specific=True)
        else:
            super()._load_rng_state(checkpoint)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of one optimizer step."""
        return super().get_batch_samples(self.guards.reading(epoch_iterator), num_batches, device)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one batch."""
        with self.guards.computing():
            return super().training_step(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As SFTTrainer's; training draws the same random numbers afterwards as if it had not been."""
        self.guards.at("an evaluation")
        self._evaluates = True  # and stays so if it is stopped
        with undisturbed():
            metrics = super().evaluate(*args, **kwargs)
        self._evaluates, self._evaluated = False, self.state.global_step
        return metrics

    # Checkpoints

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._after_step, self.guards.step = RandomState.now(), self.state.global_step
        self._flos_after_step, self._sums_after_step = (self.state.total_flos, self.current_flos), None
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._sums_after_step = self._sums_now()

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.guards.stopper.check()  # asked for in the last step, and before the best weights take the place of the last
        return super()._finalize_training(*args, **kwargs)

    def _sums_now(self) -> dict[str, Any]:
        """What was summed up on this rank since the last log."""
        return {"loss": self._tr_loss.detach().cpu().clone(), "logged": self._globalstep_last_logged}

    def _saved_sums(self, start: Checkpoint) -> dict[str, Any]:
        """This rank's; of another number of ranks nothing can be told apart, and the next log begins here."""
        if start.about["ranks"] != self.args.world_size:
            return {"loss": torch.tensor(0.0), "logged": start.step}
        return torch.load(start.folder / SUMS_FILE.format(self.args.process_index), weights_only=True)

    def _restore_sums(self, sums: Mapping[str, Any]) -> None:
        self._tr_loss, self._globalstep_last_logged = sums["loss"].to(self.args.device), sums["logged"]

    def _evaluation_waits(self) -> bool:
        """Whether an evaluation of this step was stopped, or comes only after this checkpoint, at the end of its epoch."""
        ends = float(self.state.epoch or 0.5).is_integer() or self.control.should_training_stop
        comes = ends and self.args.eval_strategy == "epoch" and self._evaluated != self.state.global_step
        return self._evaluates or comes

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The state after the last optimizer step, whole or not at all.

        Raises:
            TrainingError: on all ranks, if one could not write; the checkpoints before are kept.
        """
        self.store_flos()
        self.guards.check_weights(self._trained)
        self.guards.at("saving a checkpoint")
        step, root, best = self.state.global_step, self._keeping.root, self.state.best_global_step
        if best is not None and (best == step or (root / f"{store.PREFIX}{best}").is_dir()):
            self.state.best_model_checkpoint = str(root / f"{store.PREFIX}{best}")
        staged = store.staged_folder(root, step)
        about = {**self._keeping.about, "order": self._order, "samples_a_step": self._samples_a_step, "seconds": self.seconds}
        about |= {"pending": self._evaluation_waits(), "finished": self.control.should_training_stop}

        def prepare() -> None:
            store.check_space(root, self._bytes_needed())
            store.begin(root, step)

        is_main = self.args.should_save
        try:
            self.guards.on_all(prepare if is_main else None, "making room for a checkpoint")
            self.guards.on_all(lambda: self._write(staged), "writing a checkpoint")
            # Ranks wait for each other inside DeepSpeed's own writing: one that fails there must end, and the others with it.
            alone = self.is_deepspeed_enabled
            self.guards.on_all(lambda: self._save_optimizer_and_scheduler(str(staged)), "writing a checkpoint", alone)
            self.guards.on_all((lambda: store.commit(staged, about)) if is_main else None, "finishing a checkpoint")
        except TrainingError:
            if is_main:
                shutil.rmtree(staged, ignore_errors=True)
            raise
        self._last_saved = step
        if is_main:
            store.rotate(root, self._keep, () if best is None else (best,))

    def _bytes_needed(self) -> int:
        """By the last one; before that weights, and in float32 their copy and Adam's averages."""
        trained = sum(size(p) * (p.element_size() + 12) for p in self._trained.parameters() if p.requires_grad)
        return int(MARGIN * (store.size(self._keeping.root) or trained))

    def _write(self, staged: Path) -> None:
        """This rank's share of a checkpoint's files."""
        with whole(self._trained, trained=True):
            if self.args.should_save:
                self._trained.save_pretrained(str(staged))
        if self.args.should_save:
            states: Any = self.state.stateful_callbacks
            for callback in (*self.callback_handler.callbacks, self.control):
                if isinstance(callback, ExportableState):
                    states[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(staged / STATE_FILE))
        self._save_scaler(str(staged))
        sums = self._sums_after_step or self._sums_now()
        torch.save(sums, staged / SUMS_FILE.format(self.args.process_index))
        with undisturbed(self._after_step):
            self._save_rng_state(str(staged))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The adapter's weights, into the tensors that are there, in their own precision."""
        loaded: Any = set_peft_model_state_dict(self._trained, load_peft_weights(resume_from_checkpoint, device="cpu"))
        trained = {name for name, parameter in self._trained.named_parameters() if parameter.requires_grad}
        if loaded.unexpected_keys or trained & set(loaded.missing_keys):
            raise RunError(Problem(resume_from_checkpoint, "its adapter is not the one that this recipe makes", OTHER_ADAPTER))

    def _load_best_model(self) -> None:
        """The best checkpoint, if it is still as it was written."""
        best = store.read(self._keeping.root / f"{store.PREFIX}{self.state.best_global_step}", LAST_INSTEAD)
        if self.is_deepspeed_enabled:
            self.state.best_model_checkpoint = str(best.folder)
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(best.folder))

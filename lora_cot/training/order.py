"""The trainer's data: which samples make a batch, in which order, the same however often a run was stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from trl import SFTTrainer

from lora_cot.backbones import Family
from lora_cot.data.batches import GroupedBatches
from lora_cot.data.lengths import Kept


class OrderedTrainer(SFTTrainer):
    """TRL's trainer over batches that `GroupedBatches` makes, in another order each epoch."""

    def __init__(self, family: Family, data: tuple[Kept, Kept], by_length: bool, **options: Any):
        """
        Args:
            family: says which samples may share a batch.
            data: trained on, and held out.
            by_length: whether a step takes samples of like length.
            options: SFTTrainer's own.
        """
        super().__init__(**options)
        self._family, self._by_length = family, by_length
        self._train_set, self._eval_set = data
        self._batches: GroupedBatches | None = None
        self._own_batches: list[list[int]] = []
        self._order = ""
        self._samples_a_step = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self._begin_worker: Callable[[int], None] | None = None

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this rank."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order = {"seed": seed, "accumulation": self.args.gradient_accumulation_steps, "by_length": self._by_length}
        self._batches = self._grouped(self._train_set, self._train_batch_size, **order)
        self._order = self._batches.order()
        return self._loader(self.train_dataset, self._batches)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The held-out samples, grouped the same way."""
        if eval_dataset is not None and eval_dataset is not self.eval_dataset:
            return super().get_eval_dataloader(eval_dataset)
        return self._loader(self.eval_dataset, self._grouped(self._eval_set, self.args.eval_batch_size))

    def _grouped(self, kept: Kept, batch_size: int, **order: Any) -> GroupedBatches:
        keys = [self._family.batch_key(len(sample.images)) for sample in kept.samples]
        return GroupedBatches(keys, kept.lengths, batch_size, self.accelerator.num_processes, **order)

    def _loader(self, dataset: Any, batches: GroupedBatches) -> DataLoader:
        workers = self.args.dataloader_num_workers
        options: dict[str, Any] = {"prefetch_factor": self.args.dataloader_prefetch_factor} if workers else {}
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            worker_init_fn=self._begin_worker,
            generator=torch.Generator(),  # each start of workers draws from it, and nothing from what training draws from
            **options,
        )
        return self.accelerator.prepare(loader)

    def _begin_epoch(self, epoch: int) -> None:
        assert self._batches is not None
        self._batches.set_epoch(epoch)  # behind a sampler that skips batches, transformers does not reach it
        self._own_batches = self._batches.of_rank(self.args.process_index)

    def _samples_of(self, number: int) -> list[str]:
        """Ids of the samples of this rank's so manieth batch of this epoch."""
        numbers = self._own_batches[number] if number < len(self._own_batches) else []
        return [self._train_set.samples[i].id for i in numbers]

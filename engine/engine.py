"""The engine: a MoE model whose experts do not fit, and the few verbs one uses it with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from engine.cache.expert_cache import ExpertCache
from engine.cache.link import Link
from engine.cache.links import open_link
from engine.cache.links.cuda import open_card_link
from engine.cache.policies import EvictionPolicy
from engine.cache.policy_choice import PREDICTIVE, check_policy, make_policy
from engine.card_emulation import emulate_card
from engine.checkpoint.dense_model import DenseModel, open_checkpoint, read_dense
from engine.checkpoint.expert_index import ExpertIndex
from engine.errors import EngineClosed, InvalidSetting, NotEnoughMemory
from engine.generation.activity import Activity
from engine.generation.joint_choice import JointChoice
from engine.generation.joint_reading import JointReading
from engine.generation.prompt import Message, encode_chat
from engine.generation.request import BatchAnswer, BatchPrompt, SamplingSettings
from engine.generation.sampling import KeptLogits, Sampler
from engine.generation.sequence import TokenSequence
from engine.generation.step_gate import StepGate
from engine.generation.text_stream import TextStream
from engine.hardware.available_memory import available_ram_bytes
from engine.hardware.memory_plan import Footprint, MemoryPlan, format_bytes
from engine.hardware.vram_watch import Change, Observation
from engine.loading import (
    ModelFiles,
    Progress,
    at_precision,
    context_for,
    load_tokenizer,
    locate_model,
    make_experts,
    prepare_kernels,
    require_supported,
)
from engine.memory_relief import MemoryRelief, fit_slots, with_slots
from engine.metrics import EngineStats
from engine.model import experts as experts_function
from engine.model.fast_decode import FastDecoder
from engine.model.fast_support import ends_with_experts
from engine.model.footprint import footprint, prefill_chunk
from engine.model.joint_step import joint_step
from engine.model.kernels import release_threads
from engine.model.kv_cache import KvCache, context_full
from engine.placement import Placement, behind_card, place
from engine.routing.foresight import Foresight, choose_policy, make_foresight
from engine.routing.passes import ChatPasses
from engine.routing.traces.recent import RecentRouting
from engine.routing.traces.recording import Recording
from engine.routing.traces.trace import RoutingTrace
from engine.routing.traces.trace_store import TraceStore
from engine.routing.traces.traced_model import TracedModel, identify
from engine.scheduling.group_rows import GroupRows
from engine.scheduling.scheduler_of_model import make_token_scheduler
from engine.scheduling.scheduler_stats import SchedulerStats
from engine.scheduling.token_scheduler import SchedulerSettings
from engine.serving.chats_at_once import chats_beside, check_beside, with_chats
from engine.serving.decoding import Decoding
from engine.serving.places import Places
from engine.serving.request import Request, Submission
from engine.serving.serving import Serving
from engine.serving.window import answer_all
from engine.snapshot import ChatEvent, EngineSnapshot
from engine.vram_guard import VramGuard, slots_within


class Engine:
    """Load with `Engine.load`; every method may be called from any thread at any time; answers go through one queue.

    Greedy output equals plain transformers' on the same weights, whatever the budget, policy and link.
    """

    def __init__(
        self,
        files: ModelFiles,
        dense: DenseModel,
        tokenizer: PreTrainedTokenizerBase | None,
        footprint_: Footprint,
        plan: MemoryPlan,
        policy: str,
        link: str,
        context_length: int,
        placement: Placement,
        on_progress: Progress | None = None,
        preload: bool = False,
        host_compute: bool = False,
        batch_size: int = 0,
    ) -> None:
        self.model_name, self.tokenizer, self.context_length = files.name, tokenizer, context_length
        self.model_path = files.path
        self.device = str(placement.device)  # where the near tier is
        self._placement, self._on_card = placement, placement.card is not None
        self._footprint, self._plan = footprint_, plan
        self._model, index = dense.model, dense.index
        self._passes = ChatPasses()
        self._recording = Recording(self._model, self._passes, index.experts_per_layer, index.top_k)
        self._experts_per_layer, self._top_k = index.experts_per_layer, index.top_k
        reason = f"it computes on {self.device}." if self._on_card else FastDecoder.supports(self._model)
        self._experts_modules, self._last_row_only = dense.experts_modules, ends_with_experts(self._model)
        opened = self._open_link(link, index, preload, host_compute, on_progress)
        self._link, self._link_asked = opened.name, link
        self._emulation = emulate_card(opened, dense, on_progress)
        self._recent = RecentRouting(index.experts_per_layer, index.top_k)
        self._traced_model = identify(self._model, self.model_name, self._experts_per_layer, self._top_k)
        in_page_cache = self._link == "disk" and index.total_bytes + plan.near_bytes_total < available_ram_bytes()
        self._policy = choose_policy(policy, self._traced_model.fingerprint, in_page_cache)
        self._foresight = self._make_foresight()
        group_rows = GroupRows(len(index.experts_per_layer), index.top_k)
        self._cache = ExpertCache(
            opened,
            self._eviction(),
            index.experts_per_layer,
            0,
            group_rows.beside(self._passes.observed) if batch_size else self._passes.observed,
            self._last_row_only,
            prefetcher=self._foresight.prefetcher if self._foresight else None,
            waves=self._foresight.waves if self._foresight else None,
        )
        self._fill_near_memory()
        self._computes_on_host = opened.computes_on_host
        self._attach_experts(self._last_row_only)
        rows = prefill_chunk(self._model.config, index, context_length, self._on_card)
        relief = MemoryRelief(self._cache, plan.minimum_slots, self._shrunk) if self._on_card else None
        self._sequences = [self._new_sequence(reason is None, index.top_k, rows, relief) for _ in range(1 + batch_size)]
        kv = self._sequences[0].kv
        self._fast_path = "Decoding fast path in use." if reason is None else f"transformers' own layers: {reason}"
        emulated = self._emulation.notes if self._emulation else ()
        self._notes = (*emulated, *(() if kv.can_crop else (_RECURRENT_NOTE,)))
        self._activity = Activity()
        self._gate = StepGate()
        self._batch_size = batch_size
        joint = joint_step(self._model, kv, self._cache)
        self._reading = JointReading(joint, self._cache, JointChoice())
        self._scheduler = make_token_scheduler(self._traced_model, self._cache, group_rows, len(self._sequences))
        self._serving = self._start_serving()
        self._closed = False
        self._guard = self._start_guard()
        release_threads()  # of whoever loaded: another thread decodes

    def _new_sequence(self, fast: bool, top_k: int, rows: int, relief: MemoryRelief | None) -> TokenSequence:
        """A place for one more chat: keys and values, recorder and predicted history of its own."""
        kv = KvCache(self._model.config, self.context_length)
        feed = self._foresight.new_feed() if self._foresight else None
        told = [self._recording.new_recorder(), self._recent.listener(), *([feed] if feed else [])]
        return TokenSequence(
            self._model,
            kv,
            self._cache,
            top_k,
            rows,
            FastDecoder(self._model, kv, self._cache) if fast else None,
            self._passes.listener(*told),
            relief,
            feed,
        )

    def _start_serving(self) -> Serving:
        places = Places(self._sequences)
        flush = self._recording.flush
        decoding = Decoding(places, self._reading, self._end_ids(), self._gate, self._activity, flush, self._scheduler)
        return Serving(decoding, max(WAITING_AT_MOST, WAITING_FOR_EACH_PLACE * len(places)))

    def _start_guard(self) -> VramGuard | None:
        if self._placement.read_vram is None:
            return None
        activity = self._activity
        guard = VramGuard(
            self._placement.read_vram,
            self._follow_card,
            lambda: activity.recent_tokens_per_second if activity.phase == "decode" else None,
        )
        guard.start()
        return guard

    def _follow_card(self, seen: Observation) -> None:
        """Other programs took some of the card's memory, or gave it back: what was asked for, as far as it fits."""
        assert seen.reading is not None
        spilled = seen.nbytes if seen.change is Change.SPILLED else 0
        with self._gate.visit():
            if self._closed:
                return
            plan = self._plan
            asked = slots_within(self._footprint, plan.budget, seen.reading, spilled)
            slots = fit_slots(self._cache, asked, plan.minimum_slots)
            if slots != plan.slots:
                self._plan = with_slots(plan, slots, seen.sentence.removesuffix("."))

    def _open_link(
        self, name: str, index: ExpertIndex, preload: bool, host_compute: bool, on_progress: Progress | None
    ) -> Link:
        card = self._placement.card
        self._host_tier = None
        if card is None:
            return open_link(name, index, on_progress)
        opened = open_card_link(index, card, behind_card(self._footprint).experts, host_compute)
        self._host_tier = opened.tier
        if preload:
            try:
                opened.tier.fill(on_progress)
            except BaseException:
                opened.close()
                raise
        return opened

    def _attach_experts(self, last_row_only: bool) -> None:
        experts_function.attach(
            self._experts_modules, self._cache, last_row_only, self._on_card, self._computes_on_host
        )

    def _fill_near_memory(self) -> None:
        """The slots that are planned, or as many as there is room for. Raises NotEnoughMemory."""
        plan = self._plan
        try:
            slots = fit_slots(self._cache, plan.slots, plan.minimum_slots)
        except torch.OutOfMemoryError as error:
            self._cache.close()
            raise NotEnoughMemory(
                f"{plan.minimum_slots} experts ({format_bytes(plan.minimum_slots * plan.slot_bytes)}) do not fit into "
                "the card's memory beside the dense weights.",
                "Close other programs that use the card, lower the context length, or use --device cpu.",
            ) from error
        if slots < plan.slots:
            self._plan = with_slots(plan, slots, "The card had less memory than it said")

    def _shrunk(self, slots: int) -> None:
        self._plan = with_slots(self._plan, slots, "The card ran out of memory in the middle of an answer")

    def _make_foresight(self) -> Foresight | None:
        if self._policy != PREDICTIVE:
            return None
        return make_foresight(self._model, self.traced_model, self._experts_per_layer)

    def _eviction(self) -> EvictionPolicy:
        if self._foresight:
            return self._foresight.eviction
        return make_policy(self._policy, len(self._experts_per_layer))

    @classmethod
    def load(
        cls,
        model: str | Path = "demo",
        budget: str | int = "auto",
        device: str = "auto",
        precision: str = "auto",
        policy: str = "auto",
        link: str = "auto",
        context_length: int | None = None,
        on_progress: Progress | None = None,
        on_plan: Callable[[MemoryPlan], None] | None = None,
        preload: bool = False,
        host_compute: bool = False,
        batch_size: int | str = 0,
    ) -> Engine:
        """Loads "demo", "org/name" (from the Hugging Face cache) or a folder. Reads no expert, unless with `preload`
        as many as fit in RAM, where a card computes.

        budget: "auto", a share of the experts ("25%") or a total size ("6GiB", bytes). precision: "auto" and "native"
        are the checkpoint's own numbers; "int8" and "nf4" are lossy, made once and kept in the cache folder.
        context_length: tokens, default 2,048 or the model's own limit. on_progress(stage, done, total); on_plan(plan)
        before any weight is read. host_compute: on a card, the processor computes absent experts where that is sooner
        done than moving them; it rounds otherwise than the card, so that an answer then depends, in near ties, on what
        the cache held. batch_size: so many answers are written at once beside one; each has room for a whole context;
        "auto" is as many as take little of the near memory. Raises the errors of engine.errors.
        """
        placement = place(device, link)
        require_supported(precision)
        check_beside(batch_size)
        check_policy(policy)  # a wrong name is told before anything is read
        files = locate_model(model, on_progress)
        opened = open_checkpoint(files.path, placement.card is not None)
        checkpoint = at_precision(opened, precision)
        context_length = context_for(checkpoint.config, context_length)
        on_card = placement.card is not None
        needs = footprint(checkpoint.config, checkpoint.index, context_length, on_card)
        beside = chats_beside(batch_size, needs, lambda: placement.plan(needs, budget, link))
        needs = with_chats(needs, 1 + beside)
        plan = placement.plan(needs, budget, link)
        if on_plan is not None:
            on_plan(plan)
        make_experts(checkpoint, on_progress)
        dense = read_dense(checkpoint, on_progress)
        tokenizer = load_tokenizer(files.path)
        if placement.card is None:
            prepare_kernels(dense, FastDecoder.supports(dense.model) is None, on_progress, beside > 0)
        else:
            placement.take(dense)
            if host_compute:
                prepare_kernels(dense, False, on_progress)
        return cls(
            files,
            dense,
            tokenizer,
            needs,
            plan,
            policy,
            link,
            context_length,
            placement,
            on_progress,
            preload,
            host_compute,
            beside,
        )

    # -- answers --------------------------------------------------------------------------------------------------

    def generate_ids(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 16,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> list[int]:
        """The new ids after `prompt`; ends with and includes an end token, as stock generate does.

        Waits its turn, as every answer. Raises ContextFull, EngineBusy, EngineClosed, InvalidSetting, TransferFailed.
        """
        settings = SamplingSettings(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        return self._result(self._request(prompt, max_new_tokens, settings))

    def chat(
        self,
        messages: Sequence[Message],
        max_new_tokens: int = 512,
        temperature: float = 0.7,
        top_k: int = 0,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[ChatEvent]:
        """`submit` for one reader: streams the answer to `messages`; it is asked for with the first event.

        Closing the iterator early cancels. Raises what `submit` raises, most of it before the first event.
        """
        settings = SamplingSettings(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        return self._stream(self._request(self.encode(messages), max_new_tokens, settings, stop))

    def submit(
        self,
        prompt: Sequence[Message] | Sequence[int],
        max_new_tokens: int = 512,
        temperature: float = 0.7,
        top_k: int = 0,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
        caller: str = "",
    ) -> Submission:
        """Asks for an answer to messages ({"role", "content"}; assistant messages may carry the "token_ids" that were
        generated for them, so that a follow-up need not read them again) or to token ids, and returns at once.

        Up to 1 + `batch_size` requests of any threads are answered together; the others wait: first come, first
        served within a `caller`, and callers in turn. Greedy ids are those of each alone. Raises ContextFull,
        EngineBusy when too many wait, or so many of this `caller` that others' room would go (half of the queue at
        most), EngineClosed, InvalidSetting; what goes wrong later, the submission raises.
        """
        settings = SamplingSettings(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        return self._serving.submit(self._request(self._ids_of(prompt), max_new_tokens, settings, stop), caller)

    def generate_batch(
        self,
        prompts: Iterable[Sequence[int]],
        max_new_tokens: int = 16,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Iterator[BatchAnswer]:
        """`answer_batch` of prompts that are answered alike; the prompt numbered n is drawn with `seed` + n."""
        drawn = (temperature, top_k, top_p, min_p, repetition_penalty)
        return self.answer_batch(
            BatchPrompt(prompt, max_new_tokens, SamplingSettings(*drawn, None if seed is None else seed + number))
            for number, prompt in enumerate(prompts)
        )

    def answer_batch(self, prompts: Iterable[BatchPrompt], choice: JointChoice | None = None) -> Iterator[BatchAnswer]:
        """Answers prompts, up to the `batch_size` of `load` at once, and gives each answer as it ends. Greedy ids are
        those of each prompt alone. Prompts are taken as places become free. `choice` of how steps are read: by default
        whichever way was quicker lately.

        Ends early when cancelled. Raises what `generate_ids` raises, and InvalidSetting without a batch size.
        """
        if not self._batch_size:
            raise InvalidSetting("The model was loaded to answer one prompt at a time.", "Load it with a batch_size.")
        before = self._reading.choice
        self._reading.choice = choice or before
        try:
            yield from answer_all(self._submit_of_batch, prompts, self._batch_size)
        finally:
            self._reading.choice = before

    def _submit_of_batch(self, prompt: BatchPrompt) -> Submission:
        return self._serving.submit(self._request(prompt.ids, prompt.max_new_tokens, prompt.settings), caller="batch")

    def _ids_of(self, prompt: Sequence[Message] | Sequence[int]) -> Sequence[int]:
        ids = [token for token in prompt if isinstance(token, int)]
        if len(ids) == len(prompt):
            return ids
        return self.encode([message for message in prompt if isinstance(message, Mapping)])

    def _request(
        self, ids: Sequence[int], max_new_tokens: int, settings: SamplingSettings, stop: Sequence[str] | None = None
    ) -> Request:
        """Raises what `generate_ids` raises for this prompt. `stop`: None where nobody reads the text."""
        self.check_prompt(ids, max_new_tokens)
        text = None if stop is None or self.tokenizer is None else TextStream(self.tokenizer, stop)
        return Request(ids, max_new_tokens, Sampler(self._model, settings, len(ids)), text)

    def _stream(self, request: Request) -> Iterator[ChatEvent]:
        submission = self._serving.submit(request, caller="")
        try:
            yield from submission
        finally:
            submission.cancel()

    def _result(self, request: Request) -> list[int]:
        submission = self._serving.submit(request, caller="")
        try:
            return submission.result().ids
        finally:
            submission.cancel()

    def schedule(self, settings: SchedulerSettings) -> None:
        """How chats that are answered together share passes, from the next pass on; "auto" before the first call."""
        self._scheduler.use(settings)

    def scheduler_stats(self) -> SchedulerStats:
        """What the token scheduler did since load, and what it cost; the worst waits since the last `schedule`."""
        return self._scheduler.stats()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat up to where the assistant speaks next. Raises InvalidSetting."""
        return encode_chat(self._known_tokenizer(), messages, self._end_ids())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids, without special tokens. Raises InvalidSetting."""
        return str(self._known_tokenizer().decode(list(ids), skip_special_tokens=True))

    def _known_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise InvalidSetting("This checkpoint has no tokenizer.", "Use generate_ids, or add its tokenizer files.")
        return self.tokenizer

    def logits(self, prompt: Sequence[int]) -> torch.Tensor:
        """fp32 logits [vocab] after `prompt`, for measuring; raises what `generate_ids` raises."""
        self.check_prompt(prompt, 1)
        kept = KeptLogits()
        self._result(Request(prompt, 1, kept))
        return kept.logits

    def cancel(self) -> None:
        """Ends every answer in progress after its current token, or layer of a prefill pass; no other begins."""
        self._serving.cancel_all()

    def check_prompt(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        """Raises what `generate_ids` would raise for this prompt: InvalidSetting, ContextFull, EngineClosed."""
        self._raise_if_closed()
        vocabulary = self._model.config.get_text_config().vocab_size
        if not prompt:
            raise InvalidSetting("The prompt is empty.", "Pass at least one token.")
        if not all(0 <= token < vocabulary for token in prompt):
            raise InvalidSetting(
                "The prompt has ids outside the vocabulary.", f"Ids go from 0 to {vocabulary - 1}; use its tokenizer."
            )
        if max_new_tokens < 1:
            raise InvalidSetting(f"max_new_tokens is {max_new_tokens}.", "It must be 1 or more.")
        if len(prompt) > self.context_length:
            raise context_full(len(prompt), self.context_length)

    def _end_ids(self) -> set[int]:
        end = self._model.generation_config.eos_token_id
        return set() if end is None else {end} if isinstance(end, int) else set(end)

    # -- budget ---------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> MemoryPlan:
        """The memory plan in force."""
        return self._plan

    def plan_for(self, budget: str | int) -> MemoryPlan:
        """What `resize(budget)` would do; changes nothing. Raises what `resize` raises."""
        ram_bytes = self._host_tier.nbytes if self._host_tier else 0
        return self._placement.plan(self._footprint, budget, self._link_asked, self._held_bytes(), ram_bytes)

    def resize(self, budget: str | int) -> MemoryPlan:
        """Changes the budget live: waits for the current token or prefill pass; memory is given back at once.

        Raises BudgetTooSmall, NotEnoughMemory, InvalidSetting, and then leaves everything as it was.
        """
        self._raise_if_closed()
        plan = self.plan_for(budget)
        with self._gate.visit():
            slots = fit_slots(self._cache, plan.slots, plan.minimum_slots)
            if slots != plan.slots:
                plan = with_slots(plan, slots, "The card has less memory than it said")
            self._plan = plan
        return plan

    def _held_bytes(self) -> int:
        """What this engine's near tier takes now, so that a new plan may use it again."""
        if self._on_card:  # whose memory is taken whole, used or not
            slots = self._cache.slots * self._plan.slot_bytes
            return self._footprint.dense_bytes + slots + sum(chat.kv_bytes for chat in self._sequences)
        return self._footprint.dense_bytes + self._cache.resident_bytes(self._plan.slot_bytes)

    # -- seeing ---------------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counters since load. `stats() - earlier` gives an interval."""
        plan = self._plan
        return EngineStats(
            **self._cache.counters(),
            **self._activity.to_stats_fields(),
            time_dilation=self._emulation.dilation if self._emulation else 1.0,
            near_bytes_experts=plan.near_bytes_experts,
            near_bytes_dense=plan.near_bytes_dense,
            near_bytes_kv=plan.near_bytes_kv,
            near_bytes_workspace=plan.near_bytes_workspace,
            model_bytes_total=plan.model_bytes_total,
        )

    def snapshot(self) -> EngineSnapshot:
        """Everything a panel shows; cheap."""
        activity, stats = self._activity, self.stats()
        running, waiting = self._serving.running, self._serving.waiting
        recent = activity.recent_tokens_per_second
        return EngineSnapshot(
            stats=stats,
            plan=self._plan,
            busy=running + waiting > 0,
            running=running,
            waiting=waiting,
            at_once=len(self._sequences),
            phase=activity.phase,
            prefill_done=activity.prefill_done,
            prefill_total=activity.prefill_total,
            context_used=self._serving.context_used,
            context_length=self.context_length,
            time_to_first_token_seconds=activity.time_to_first_token_seconds,
            recent_tokens_per_second=None if recent is None else recent * stats.time_dilation,
            residency=self._cache.residency_map(),
            use_counts=self._cache.use_counts(),
            link=self._link,
            policy=self._policy,
            model_name=self.model_name,
            architecture=type(self._model).__name__,
            fast_path=self._fast_path,
            notes=self._all_notes(),
            foresight=self._foresight.snapshot() if self._foresight else None,
            emulation=self._emulation,
        )

    def _all_notes(self) -> tuple[str, ...]:
        problem = self._host_tier.problem if self._host_tier else None
        seen = self._guard.said if self._guard else None
        held = self._placement.held.words(self._plan.near_bytes_total, self._placement.read_vram)
        return (*self._notes, *filter(None, (held, problem, seen, self._cache.host_compute_words())))

    # -- recording ------------------------------------------------------------------------------------------------

    @property
    def traced_model(self) -> TracedModel:
        """Whose routing this is, for opening a TraceStore."""
        return self._traced_model

    def record_to(self, store: TraceStore | None, ahead: int = 0, hidden: bool = False, taps: bool = True) -> None:
        """From the next pass on, records the routing of every token into `store`, which stays the caller's to close
        (after `record_to(None)`, which ends recording with everything written, or after `close`).

        `ahead`: how many deeper layers' routers are asked in each layer; `hidden`: also the final hidden states
        and, with `taps`, those that a few routers on the way see.
        A disk that fails ends recording, not the answer (`recording_problem`). Raises EngineClosed, UnsupportedModel.
        """
        if store is not None:
            self._raise_if_closed()
        with self._gate.visit():
            self._recording.to_store(store, ahead, hidden, taps)
            whole = store is not None and hidden  # of rows whose experts are left out no hidden state can come
            last_row_only = self._last_row_only and not whole
            self._attach_experts(last_row_only)

    @property
    def recording_problem(self) -> str | None:
        """Why recording stopped by itself, in a sentence; None while all is well."""
        return self._recording.problem

    def new_recorded_conversation(self) -> None:
        """The next prompt is recorded as a conversation of its own, whatever it shares with the one before."""
        with self._gate.visit():
            self._recording.new_conversation()

    def wait_recorded(self) -> None:
        """Returns when everything recorded so far is in the store."""
        with self._gate.visit():
            self._recording.wait()

    def record_routing(self, on: bool) -> None:
        """Starts (afresh) or stops recording into memory, in place of any store."""
        self.record_to(None)
        with self._gate.visit():
            self._recording.to_memory(on)

    def take_routing(self) -> list[RoutingTrace]:
        """The rows recorded into memory since the last call, a trace for each conversation."""
        with self._gate.visit():
            return self._recording.take()

    def recent_routing(self) -> RoutingTrace:
        """The last few hundred decoded tokens' experts, kept in memory whether anything is recorded or not."""
        return self._recent.trace()

    # -- end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancels, stops all threads, closes all files, frees the memory. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._serving.close()
        if self._guard is not None:
            self._guard.close()
        with self._gate.visit():
            self._cache.close()
            self._recording.to_store(None)
            for chat in self._sequences:
                chat.forget()
            self._leave_card()
            if self._placement.read_vram is not None:
                self._placement.read_vram.close()

    def _leave_card(self) -> None:
        """Whoever still holds this engine does not hold the card's memory with it."""
        card = self._placement.card
        if card is not None:
            for chat in self._sequences:
                chat.free()
            self._model.to("meta")
            card.release_unused()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise EngineClosed("The engine was closed.", "Load the model again.")


WAITING_AT_MOST = 64  # requests, or some for each that is answered:
WAITING_FOR_EACH_PLACE = 4  # a batch, one caller, waits for all of its places at once and shall not be refused
_RECURRENT_NOTE = "This model has recurrent state, which cannot be taken back: each follow-up reads the chat again."

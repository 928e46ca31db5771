"""Whether experts can be fused with a base, and what it will cost: found before any compute, all problems together.

No model is loaded. Configurations, tokenizers and headers are read, the adapters' factors, and (where `scan` allows)
every weight of the base and of full fine-tunes once, one tensor at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from triune.errors import InputError
from triune.fusion import estimates
from triune.fusion.building import output_fields
from triune.fusion.checking_experts import gather, report
from triune.fusion.checking_folders import Base, Expert, open_base, open_expert
from triune.fusion.checking_problems import problems
from triune.fusion.checking_results import ALL, BASE, BaseReport, CheckResult, ExpertReport, Finding, Pair
from triune.fusion.checking_settings import attention, windows
from triune.fusion.checking_weights import Survey, cosines, quote, survey
from triune.fusion.configuration import TriuneConfig
from triune.fusion.export import native
from triune.fusion.export.source import Options, Source
from triune.fusion.importance import find_reference
from triune.parsing import parse_json
from triune.progress import SILENT, Progress
from triune.recipe import FFN, SHARED, Fuse, check_weights

ALIKE = 0.99  # cosine from which two experts are the same one for a mixture


def check_fusion(
    source: str, folders: Mapping[str, Path], settings: Fuse, *, scan: bool = True, progress: Progress = SILENT
) -> CheckResult:
    """Look at everything; nothing raises for a bad base or expert: findings say what is wrong with each.

    source: the base's folder or hub name; folders: the experts' by name. `scan=False` reads no weight of the base and
    of full fine-tunes: no hash, no NaN, no difference; what that leaves unknown is said.
    """
    base = open_base(source)
    experts = [open_expert(name, Path(folder), base) for name, folder in folders.items()]
    read = _read(base, experts, progress, scan=scan)
    scanned = bool(read.sha256)
    seen = [gather(expert, base, read, settings.shared, scanned=scanned) for expert in experts]
    reports = tuple(report(own) for own in seen)
    pairs = tuple(_pairs(read, list(folders)))
    findings = [*base.findings, *_base_findings(base, read, scan=scan)]
    for own, found in zip(seen, reports, strict=True):
        findings += problems(own, found)
    findings += [*_choices(list(folders), settings), *_together(experts, reports, pairs)]
    outcomes = _outcomes(base, reports, settings)
    return CheckResult(
        fusable=not any(finding.severity == "refused" for finding in findings),
        scanned=scanned,
        top_k=settings.top_k,
        shared=settings.shared,
        base=_base_report(base, read),
        experts=reports,
        pairs=pairs,
        outcomes=outcomes,
        findings=tuple(findings),
    )


def _read(base: Base, experts: Sequence[Expert], progress: Progress, *, scan: bool) -> Survey:
    """One pass over all weights that are to be read."""
    vectors = {expert.name: expert.vector for expert in experts if expert.vector is not None}
    full = {expert.name: expert.weights for expert in experts if expert.weights is not None}
    return survey(base.path if scan and base.header else None, full, vectors, progress)


def _base_report(base: Base, read: Survey) -> BaseReport | None:
    if base.facts is None or base.config is None:
        return None
    facts = base.facts
    return BaseReport(
        source=base.source,
        folder=base.path,
        architecture=(base.config.architectures or [""])[0],
        model_type=facts.model_type,
        n_layers=facts.n_layers,
        hidden_size=facts.hidden_size,
        intermediate_size=facts.intermediate_size,
        activation=facts.activation,
        n_parameters=facts.n_parameters,
        n_bytes=facts.n_bytes,
        dtype=facts.dtype,
        tie_word_embeddings=facts.tie_word_embeddings,
        vocab_size=facts.vocab_size,
        n_token_ids=facts.n_token_ids,
        context=facts.context,
        rope=parse_json(facts.rope),
        attention=attention(base.config, base.header),
        stops=base.generation.stops,
        has_template=base.template is not None,
        sha256=read.sha256 or None,
        nonfinite=read.nonfinite.get(None),
    )


def _base_findings(base: Base, read: Survey, *, scan: bool) -> Iterator[Finding]:
    if not scan and base.header:
        what = "weights not checked: no hash to compare experts with, no search for NaN, no size of a full fine-tune"
        yield Finding("warning", BASE, what, "check with the scan before a long run")
    broken = read.nonfinite.get(None)
    if broken:
        shown = quote([f"{name} ({count:,})" for name, count in broken.items()])
        what = f"NaN or infinite values in {shown}"
        yield Finding("refused", BASE, what, "download it again, or choose another base")


def _choices(names: Sequence[str], settings: Fuse) -> Iterator[Finding]:
    """What is wrong with the set and the settings, whatever the experts are."""
    if len(names) < 2:
        yield Finding("refused", ALL, f"got {len(names)} expert(s); a fusion needs two or more", "give more experts")
    if settings.top_k > len(names):
        what = f"fuse.top_k is {settings.top_k}, but there are only {len(names)} experts"
        yield Finding("refused", ALL, what, "lower it")
    yield from _weights(names, settings)
    allowed = (*SHARED, *names)
    if settings.shared not in allowed:
        yield Finding("refused", ALL, f"fuse.shared is {settings.shared!r}", f"allowed: {', '.join(allowed)}")


def _weights(names: Sequence[str], settings: Fuse) -> Iterator[Finding]:
    """What `fuse` would refuse of the weights and of the importance's reference, and which expert is subtracted."""
    for check in (lambda: check_weights(settings, names), lambda: find_reference(settings.importance, names)):
        try:
            check()
        except InputError as error:
            what, _, way_out = str(error).partition("; ")
            yield Finding("refused", ALL, what, way_out)
    for name, weight in settings.weights.items():
        if weight < 0 and name in names:
            what = f"the expert {name!r} is subtracted (weight {weight:g}): the fused model does less of what it does"
            yield Finding("warning", ALL, what, "leave its weight out, if that is not meant")


def _together(experts: Sequence[Expert], reports: Sequence[ExpertReport], pairs: Sequence[Pair]) -> Iterator[Finding]:
    """What is wrong between the experts, which none of them shows alone."""
    hashes = {expert.name: expert.base_hash for expert in experts if expert.base_hash}
    if len(set(hashes.values())) > 1:
        shown = ", ".join(f"{name}: {value[:12]}" for name, value in hashes.items())
        what = f"they were trained on different base weights ({shown})"
        yield Finding("refused", ALL, what, "give experts of one base")
    for pair in pairs:
        if pair.cosine > ALIKE:
            what = f"{pair.first} and {pair.second} change the base in the same way (cosine {pair.cosine:.4f})"
            yield Finding("warning", ALL, what, "give each expert once")
    templates = {expert.name: expert.template for expert in experts if expert.template is not None}
    if len(set(templates.values())) > 1:
        what = f"{', '.join(templates)} bring different chat templates, so that no form of a prompt suits them all"
        yield Finding("warning", ALL, what, "train the experts on one template, or ask without any")


def _pairs(read: Survey, names: Sequence[str]) -> Iterator[Pair]:
    for first, second in combinations(names, 2):
        if (first, first) in read.products and (second, second) in read.products:
            whole, layers = cosines(read, first, second)
            known = [value for value in layers.values() if not math.isnan(value)] or [math.nan]
            yield Pair(first, second, whole, min(known), max(known), layers)


def _outcomes(base: Base, reports: Sequence[ExpertReport], settings: Fuse) -> tuple[estimates.Outcome, ...]:
    """The forms that the result can take; none where the base or all experts are unknown."""
    own = [found for found in reports if found.kind != "none"]
    if base.facts is None or base.config is None or not own:
        return ()
    facts, config = base.facts, base.config
    heads = attention(config, base.header)
    sizes = estimates.Sizes(
        facts.hidden_size,
        facts.intermediate_size,
        facts.n_parameters,
        heads.kv_heads * heads.head_dim,
        windows(config),
    )
    most = min(facts.hidden_size, facts.intermediate_size)  # of a full fine-tune that is kept whole
    ranks = [found.ranks if found.ranks is not None else dict.fromkeys(FFN, most) for found in own]
    exact = all(found.ranks is not None for found in own)
    refused = _not_native(base, own, settings)
    return (
        estimates.compact(sizes, estimates.stored_ranks(ranks, FFN), settings, exact=exact),
        estimates.native(sizes, len(own), settings.top_k, refused=refused),
        estimates.merged(sizes),
    )


def _not_native(base: Base, own: Sequence[ExpertReport], settings: Fuse) -> str:
    """Why the native export would refuse this fused model; "" where it would not."""
    if base.config is None:
        return ""
    config = TriuneConfig(
        text_config=base.config.to_dict(),
        expert_names=[found.name for found in own],
        num_experts_per_tok=settings.top_k,
        norm_topk_prob=settings.renormalise,
        router_temperature=settings.temperature,
        # γ is not known before it is fused; any that differ ask the same of the export.
        expert_importance=None if settings.importance is None else [1.0 + place for place in range(len(own))],
        post_norm=settings.post_norm,
        **output_fields(settings, base.config.get_text_config().hidden_size),
    )
    try:
        native.check(Source(Path("the fused model"), config, base.header, {}, {}), Options())
    except InputError as error:
        return str(error)
    return ""

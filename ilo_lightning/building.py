"""From a configuration to everything that it describes, built and checked."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import hydra
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException, MissingConfigException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import identity
from .data.images import load_images
from .errors import first_line, one_line
from .generators.base import LayeredGenerator
from .losses import NETS, PerceptualFit, PerceptualNet, TargetFit, check_size
from .method import Method
from .method_config import AUTO
from .observations import MODES, Measured, Observations, Requested, Simulated
from .operators import Classifier, ForwardOperator
from .operators.noise import NoiseModel
from .rehearsal import check_generator_attributes, check_operator_attributes
from .setting import RunError, Setting, renamed
from .sweeps.inputs import inputs_of
from .sweeps.point import force_word
from .sweeps.shard import Shard

SECTIONS = ("task", "generator", "method", "perceptual", "data", "trainer", "logger")

T = TypeVar("T")


def instantiate(config: Any, field: str, kind: type[T], **more: Any) -> T:
    """Build what a section of the configuration describes.

    Args:
        config: the section, with its ``_target_``.
        field: its name, for errors.
        kind: what it must be.
        more: further arguments of the target.

    Raises:
        RunError: naming the field, if building it fails, or gives something else.
    """
    target = config.get("_target_") if isinstance(config, DictConfig) else config
    try:
        # Plain lists and dictionaries: modules such as torch.nn.Unflatten take no others.
        made = hydra.utils.instantiate(config, **{"_convert_": "all", **more})
    except (Exception, SystemExit) as error:  # whatever a user's own module raises
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        message = renamed(str(cause), field)
        if not isinstance(cause, ValueError) or not re.match(r"(task|generator|method|baseline|perceptual)\b", message):
            message = f"{field}._target_={target}: {one_line(cause)}"
        raise RunError(message) from error
    if not isinstance(made, kind):
        raise RunError(f"{field}._target_={target}: gives a {type(made).__name__}, expected a {kind.__name__}")
    return made


def generator_of(config: DictConfig) -> LayeredGenerator:
    """The generator that a configuration describes."""
    generator = instantiate(config.generator, "generator", LayeredGenerator)
    check_generator_attributes(generator)
    return generator


def build(config: DictConfig, overrides: Sequence[str] = ()) -> Setting:
    """Instantiate and check everything a configuration describes."""
    fit = OmegaConf.select(config, "task.fit") if isinstance(config.task, DictConfig) else None
    if fit is not None and not isinstance(fit, DictConfig):
        raise RunError(f"task.fit={fit}: expected a weight per term, such as {{mse: 1, cross_entropy: 0}}")
    if isinstance(config.task, DictConfig):  # methods ask it for its noise
        noise = OmegaConf.select(config, "task.noise")
        if not isinstance(noise, DictConfig):
            raise RunError(f"task.noise={noise}: a task needs one; see conf/task")
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    for name in SECTIONS:
        if not isinstance(config[name], DictConfig):
            raise RunError(f"{name}={config[name]}: expected a section of options, see conf/{name}")
    generator = generator_of(config)
    method = _method_of(config, "method", generator)
    baseline = _method_of(config, "baseline", generator) if config.get("baseline") else None
    perceptual = None
    if config.perceptual.name != "none":
        if any(it and it.data_fit.get("perceptual") for it in (method, baseline)):
            perceptual = instantiate(config.perceptual, "perceptual", PerceptualFit)
        elif _typed("perceptual"):
            print(f"perceptual={config.perceptual.name}: not used, as {method.name} gives it no weight; "
                  "method.data_fit.perceptual=1 does", file=sys.stderr)  # fmt: skip
    judges = judges_of(config, generator.image_shape)
    shard = Shard.parse(config.data.get("shard"))
    operator, observations = build_observations(config, generator)
    return Setting(
        # A trainer's precision is a part of its own; an experiment's size has been resolved.
        config=identity.without(values, (*identity.PLACEMENT, *identity.SIZES, "trainer")),
        generator=generator,
        operator=operator,
        method=method,
        baseline=baseline,
        perceptual=perceptual,
        judges=judges,
        target=target_of(config, generator),
        observations=observations,
        batch_size=config.data.batch_size,
        decode_batch_size=config.data.get("decode_batch_size"),
        seed=config.seed,
        checkpoint_every_seconds=config.checkpoint_every_seconds,
        trainer=values["trainer"],
        shard=shard,
        force=force_word(config.get("force")),
        inputs=inputs_of(values),
        overrides=tuple(overrides),
        pack=config.get("pack", False),
        yaml=as_yaml(config),
    )


def _method_of(config: DictConfig, field: str, generator: LayeredGenerator) -> Method:
    """A section's method, no deeper than the generator where its layers are left to that."""
    section = config[field]
    depth = {"depth": generator.num_layers} if section.get("layers") == AUTO else {}
    return instantiate(section, field, Method, **depth)


def load_method(name: str = "ilo", *, depth: int | None = None, **fields: Any) -> Method:
    """A method as ``method=NAME`` of the command line has it, for ``solve`` and for ``deepinv.reconstructor``.

    Args:
        name: of one in ``conf/method``.
        depth: ``num_layers`` of the generator, where it may have fewer layers than the method names.
        fields: others than configured, such as ``evaluations=400`` or ``noise_level=0.02`` (unknown unless told); of a
            mapping, the entries that are given.

    Raises:
        RunError: if there is no such method or field, or the method can't be.
    """
    around = get_gh_backup()  # of an application that is Hydra's, too
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("ilo_lightning.conf", version_base="1.3"):
            section = compose("config", overrides=[f"method={name}"]).method
            for field, value in {"noise_level": None, **fields}.items():
                if field not in section:
                    raise RunError(f"method.{field}={value}: no such field, see method_from_config")
                try:
                    OmegaConf.update(section, field, value, merge=True)
                except OmegaConfBaseException as error:
                    raise RunError(f"method.{field}={value!r}: {first_line(error)}") from error
            more = {"depth": depth} if section.layers == AUTO else {}
            return instantiate(section, "method", Method, **more)
    except MissingConfigException as error:
        raise RunError(f"method={name}: there is none of this name, see conf/method") from error
    finally:
        restore_gh_from_backup(around)


def _typed(group: str) -> bool:
    """Whether the command line chooses from a group, and not only an experiment."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(word.lstrip("+").startswith(f"{group}=") for word in words)


def judges_of(config: DictConfig, shape: tuple[int, ...]) -> list[PerceptualNet]:
    """The networks that ``metrics.perceptual`` names, for images ``(C, H, W)``; ``auto`` is ST-LPIPS, with a second
    network where the loss has the first, and none where its package isn't installed or the images are too small. One
    that is the loss's too is read from the same file.

    Raises:
        RunError: if there is none of a name.
        PerceptualError: naming the field, its value and the remedy.
    """
    section = config.get("metrics", {})
    if not isinstance(section, Mapping | DictConfig):
        raise RunError(f"metrics={section}: expected a section with perceptual and size, see conf/config.yaml")
    named = section.get("perceptual")
    names = list(named) if isinstance(named, ListConfig) else [named or "none"]
    loss = config.get("perceptual") or {}

    def opened(name: str) -> PerceptualNet:
        trunk = loss.get("trunk") if name == loss.get("name") else None
        net = PerceptualNet.open(name, trunk, size=section.get("size"), field="metrics.perceptual")
        net.check_size(shape, f"metrics.perceptual={name}: images of", "metrics.size")
        return net

    check_size(section.get("size"), "metrics")
    if names == [AUTO]:
        names = ["stlpips_vgg", "stlpips_alex"] if loss.get("name") == "stlpips_alex" else ["stlpips_alex"]
        small = section.get("size") is None and any(min(shape[1:]) < NETS[name].minimum for name in names)
        if small or importlib.util.find_spec("stlpips_pytorch") is None:
            return []
    for name in names:
        if name not in (*NETS, "none"):
            raise RunError(f"metrics.perceptual={name}: expected auto alone, none, or some of {', '.join(NETS)}")
    return [opened(name) for name in dict.fromkeys(names) if name != "none"]


def build_observations(config: DictConfig, generator: LayeredGenerator) -> tuple[ForwardOperator, Observations]:
    """The forward model, and the images seen through it."""
    for field in ("operator", "noise"):
        if not config.task.get(field):
            raise RunError(f"task.{field}={config.task.get(field)}: a task needs one; see conf/task")
    if config.data.mode not in MODES:
        raise RunError(f"data.mode={config.data.mode}: expected one of {', '.join(MODES)}")
    shape = generator.image_shape
    operator = instantiate(config.task.operator, "task.operator", ForwardOperator, image_shape=shape)
    check_operator_attributes(operator)
    noise = instantiate(config.task.noise, "task.noise", NoiseModel)
    classifier = operator.classifier
    if classifier is not None and getattr(noise, "sigma", None) != 0:
        raise RunError(
            "task.noise: with noise they were no probabilities of classes; use task/noise=gaussian task.noise.sigma=0"
        )
    if config.task.get("target") is not None and classifier is not None and config.data.mode != "measured":
        limit = config.data.limit
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise RunError(f"data.limit={limit}: expected null or a whole number, at least 1: how many attempts")
        return operator, Requested(operator, classifier.target(config.task.target), limit or 1, generator.dtype)
    path, limit = config.data.path, config.data.limit
    if config.data.mode == "measured":
        task: Any = OmegaConf.to_container(config.task, resolve=True)
        return operator, Measured(path, operator, task, limit, generator.dtype)
    noise.check(operator)
    images = load_images(path, generator.image_shape, limit)
    return operator, Simulated(images, operator, noise, config.seed, generator.dtype)


def target_of(config: DictConfig, generator: LayeredGenerator) -> TargetFit | None:
    """The class that pictures are to be of, where the task has a classifier beside its operator."""
    if config.task.get("classifier") is None:
        return None
    try:
        classifier = instantiate(
            config.task.classifier, "task.classifier", Classifier, image_shape=generator.image_shape
        )
    except RunError as error:
        raise RunError(str(error).replace("task.operator.", "task.classifier.")) from error
    return TargetFit(classifier, classifier.target(config.task.get("target")))


def as_yaml(config: DictConfig) -> str:
    """The configuration of a folder, whichever shard of it a job works on; resolved, as far as it can be."""
    shared = OmegaConf.merge(config, {"force": False})
    if isinstance(config.get("data"), DictConfig):
        shared = OmegaConf.merge(shared, {"data": {"shard": None}})
    try:
        return OmegaConf.to_yaml(shared, resolve=True)
    except OmegaConfBaseException:
        return OmegaConf.to_yaml(shared)

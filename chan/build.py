"""Builds a run's objects from its configuration, which goes no further than this module.

Everything that is built takes plain values: `chan.model`, `chan.data`, `chan.text` and `chan.training` never see a
configuration.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from chan.config import (
    CodingName,
    Config,
    ImageEncoderName,
    LossConfig,
    LossName,
    ModelConfig,
    ScheduleName,
    TextEncoderName,
    TrainConfig,
)
from chan.data.batches import TrainingPairs
from chan.data.feature_cache import FeatureCache, make_cache
from chan.data.splits import FeatureSplit
from chan.model.aggregation import Aggregation
from chan.model.chan import Chan
from chan.model.image_encoders import ImageEncoder
from chan.model.text_encoders import BertEncoder, BiGRUEncoder
from chan.scoring.pairwise import Scorer
from chan.text.bert import load_bert
from chan.text.tokenizers import BertTokenizer, CaptionTokenizer, VocabularyTokenizer
from chan.text.word_vectors import initialise_word_vectors
from chan.training.distributed import Ranks
from chan.training.losses import Criterion, contrastive, infonce
from chan.training.optimizer import make_optimizer
from chan.training.schedule import LearningRate, Schedule, half_cosine, step_down
from chan.training.step import TrainingStep
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import UsageError
from data_tools.layout import find_vocabulary


def build_tokenizer(config: Config, data: Path, captions: Sequence[str]) -> CaptionTokenizer:
    """BERT's tokenizer, or that of a vocabulary: the configured one, the data set's, or one built from `captions`.

    Args:
        config: the configuration.
        data: the data set's folder.
        captions: from which a vocabulary is built if there is none.

    Raises:
        InputError: the configured BERT or vocabulary cannot be read.
    """
    if config.model.text.encoder is TextEncoderName.bert:
        return BertTokenizer(config.model.text.bert)
    found = Path(config.data.vocab) if config.data.vocab else find_vocabulary(data)
    return VocabularyTokenizer(Vocabulary.load(found) if found else Vocabulary.build(list(captions)))


def build_model(
    config: ModelConfig, feature_dim: int, tokenizer: CaptionTokenizer, pretrained: bool, verbose: bool = True
) -> Chan:
    """The model of a configuration, on the CPU.

    Args:
        config: the configuration.
        feature_dim: numbers per region in the features.
        tokenizer: gives the ids that the text encoder takes.
        pretrained: whether BERT gets its pretrained weights, or the GRU its word vectors; not needed if a
            checkpoint will be loaded.
        verbose: whether to print how many words of the vocabulary have a pretrained vector.

    Raises:
        InputError: the BERT or the word vectors cannot be read.
    """
    image, text, dim = config.image, config.text, config.dim
    image_encoder = ImageEncoder(feature_dim, dim, image.encoder.value, image.normalise, _aggregation(config))
    text_encoder: BiGRUEncoder | BertEncoder
    if isinstance(tokenizer, BertTokenizer):
        bert = load_bert(tokenizer.source, pretrained)
        text_encoder = BertEncoder(bert, dim, text.normalise, _aggregation(config))
    else:
        assert isinstance(tokenizer, VocabularyTokenizer)
        words, path = tokenizer.vocabulary.words, text.word_vectors
        text_encoder = BiGRUEncoder(
            len(words),
            text.word_dim,
            dim,
            text.normalise,
            _aggregation(config),
            initial_range=text.initial_range,
            layers=text.layers,
        )
        if pretrained and path is not None:
            found = initialise_word_vectors(text_encoder.embed, words, Path(path))
            if verbose:
                print(f"word vectors: {found} of {len(words)} words found", file=sys.stderr, flush=True)
    return Chan(image_encoder, text_encoder, _scorer(config))


def build_step(
    config: Config, tokenizer: CaptionTokenizer, device: torch.device, ranks: Ranks, pretrained: bool
) -> TrainingStep:
    """The model of a configuration, whose `model.image.dim` is known, and its training step, on `device`.

    Args:
        config: the configuration.
        tokenizer: gives the ids that the text encoder takes.
        device: where to train.
        ranks: this process among those that train together.
        pretrained: as for `build_model`.

    Raises:
        UsageError: several processes cannot train this model.
    """
    if ranks.count > 1 and config.model.image.encoder is ImageEncoderName.mlp:
        raise UsageError(
            "model.image.encoder=mlp: trains in one process, since its batch normalisation needs the whole batch; "
            "fix: start it without torchrun"
        )
    settings, feature_dim = config.train, config.model.image.dim
    assert feature_dim is not None
    torch.manual_seed(settings.seed)
    model = build_model(config.model, feature_dim, tokenizer, pretrained, verbose=ranks.is_main).to(device)
    return TrainingStep(
        model=model,
        optimizer=make_optimizer(model, settings.lr, settings.text_lr_factor, settings.weight_decay),
        device=device,
        precision=settings.precision.value,
        grad_cache_chunks=settings.grad_cache_chunks,
        clip=settings.clip,
        mask_duplicates=config.loss.mask_duplicates,
        ranks=ranks,
    )


def build_schedule(config: Config) -> Schedule:
    """How long a run trains, and the loss and the learning rate on the way; the sizes are known (`fill_sizes`)."""
    settings = config.train
    assert settings.epochs is not None
    assert settings.batch_size is not None
    return Schedule(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        patience=settings.patience,
        criterion=_criterion(config.loss),
        learning_rate=_learning_rate(settings),
    )


def build_training_pairs(
    config: Config, training: FeatureSplit, tokenizer: CaptionTokenizer, device: torch.device
) -> tuple[TrainingPairs, FeatureCache | None]:
    """The augmented pairs of the training split, and the cache of its features if it has one.

    Raises:
        InputError: the features do not fit into the memory that `data.cache` names.
    """
    cache = make_cache(training, config.data.cache.value, device)
    keep, change = config.data.region_keep_prob, config.data.token_change_prob
    starts = None if cache is None else cache.starts
    return TrainingPairs(training, tokenizer, keep, change, config.train.seed, starts), cache


def _has_one_vector(config: ModelConfig) -> bool:
    return config.coding is CodingName["global"]


def _aggregation(config: ModelConfig) -> Aggregation | None:
    """A new one for each encoder, since GPO has weights; None where regions and words are compared."""
    return Aggregation(config.pooling.value) if _has_one_vector(config) else None


def _scorer(config: ModelConfig) -> Scorer:
    pooling = "mean" if _has_one_vector(config) else config.pooling.value  # nothing is left to pool
    return Scorer.from_names(
        config.coding.value,
        pooling,
        config.alpha,
        config.beta,
        similarity_norm=config.similarity_norm.value,
        lambda_softmax=config.lambda_softmax,
        lambda_lse=config.lambda_lse,
    )


def _criterion(config: LossConfig) -> Callable[[int], Criterion]:
    """The loss of each epoch."""
    margin, warmup = config.margin, config.warmup_epochs
    if config.name is LossName.infonce:
        loss = partial(infonce, margin=margin, temperature=config.temperature)
        return lambda epoch: loss
    return lambda epoch: partial(contrastive, margin=margin, hardest=warmup is not None and epoch >= warmup)


def _learning_rate(config: TrainConfig) -> LearningRate:
    """The learning rate of each step."""
    lr, epochs, decay, decay_epoch = config.lr, config.epochs, config.lr_decay, config.lr_decay_epoch
    assert epochs is not None
    assert decay_epoch is not None
    if config.schedule is ScheduleName.cosine:
        return lambda epoch, step, steps: half_cosine(lr, (epoch * steps + step) / (epochs * steps))
    return lambda epoch, step, steps: step_down(lr, decay, decay_epoch, epoch)

"""Drawing from Stable Diffusion, compared with diffusers' own pipeline on tiny random networks."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from peft import LoraConfig
from sd_parts import TEXT, UNET, VAE, tiny_pipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from datamodules.prompts_text import trimester_prompt
from lightning_modules.generators.stable_diffusion.base import (
    SCHEDULER_SETTINGS,
    encode_prompts,
    load_base,
)
from lightning_modules.generators.stable_diffusion.config import StableDiffusionSamplerConfig
from lightning_modules.generators.stable_diffusion.sampling import (
    compiling_pays,
    decode_latents,
    draw_latents,
    make_solver,
    mask_channels,
)
from lightning_modules.randomness import keyed_randn

LATENT_HW = (8, 16)
SOLVERS = {"unipc": UniPCMultistepScheduler, "dpmsolver++": DPMSolverMultistepScheduler}


def _unet(*, in_channels: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET, in_channels=in_channels).eval()


def _vae() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(**VAE).eval()


def _embeddings(count: int) -> torch.Tensor:
    return torch.randn(count, 7, 16, generator=torch.Generator().manual_seed(2))


def _empty_embedding() -> torch.Tensor:
    return torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(3))


def _sampler(**changes: object) -> StableDiffusionSamplerConfig:
    quick = {"num_inference_steps": 4, "guidance_scale": 7.5, "guidance_rescale": 0.0}
    return StableDiffusionSamplerConfig(**(quick | changes))


def _draw(unet: nn.Module, *, seeds: list[int], **changes: object) -> torch.Tensor:
    arguments = {
        "seeds": seeds,
        "prompt_embeddings": _embeddings(len(seeds)),
        "empty_embedding": _empty_embedding(),
        "mask_channels": None,
        "latent_hw": LATENT_HW,
        "sampler": _sampler(),
        "scheduler_config": SCHEDULER_SETTINGS,
    }
    return draw_latents(unet, **(arguments | changes))


def _pipeline(*, solver: str, scheduler_config: dict) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline(
        vae=_vae(),
        # It embeds nothing here, but the pipeline scales its LoRA too.
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
        tokenizer=None,
        unet=_unet(),
        scheduler=SOLVERS[solver].from_config(scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _pipeline_latents(
    pipeline: StableDiffusionPipeline, *, sampler: StableDiffusionSamplerConfig
) -> torch.Tensor:
    noise = keyed_randn((4, *LATENT_HW), seed=0, draws=[5, 6, 7], stream="sd_sample")
    return pipeline(
        prompt_embeds=_embeddings(3),
        negative_prompt_embeds=_empty_embedding().expand(3, -1, -1),
        latents=noise,
        height=64,
        width=128,
        num_inference_steps=sampler.num_inference_steps,
        guidance_scale=sampler.guidance_scale,
        guidance_rescale=sampler.guidance_rescale,
        cross_attention_kwargs={"scale": sampler.lora_scale},
        output_type="latent",
    ).images


def _add_lora(unet: UNet2DConditionModel) -> None:
    unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"]))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "lora_" in name:
                # Larger weights would multiply rounding from pass to pass.
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))


class _Recorder(nn.Module):
    """Passes inputs on to a UNet and keeps them."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet, self.inputs, self.embeddings = unet, [], []
        self.conv_in, self.dtype = unet.conv_in, unet.dtype

    def forward(self, sample, timestep, *, encoder_hidden_states, **rest):
        self.inputs.append(sample)
        self.embeddings.append(encoder_hidden_states)
        return self.unet(sample, timestep, encoder_hidden_states=encoder_hidden_states, **rest)


@pytest.mark.parametrize("solver", ["unipc", "dpmsolver++"])
@pytest.mark.parametrize(
    ("guidance_scale", "guidance_rescale"), [(7.5, 0.0), (7.5, 0.7), (2.5, 1.0), (1.0, 0.0)]
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_latents_equal_the_pipelines(solver, guidance_scale, guidance_rescale, prediction_type):
    config = SCHEDULER_SETTINGS | {"prediction_type": prediction_type}
    sampler = _sampler(
        solver=solver,
        num_inference_steps=8,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
    )
    expected = _pipeline_latents(_pipeline(solver=solver, scheduler_config=config), sampler=sampler)
    ours = _draw(_unet(), seeds=[5, 6, 7], sampler=sampler, scheduler_config=config)
    assert ours.shape == (3, 4, *LATENT_HW)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_images_of_prompts_equal_the_whole_pipelines(tmp_path):
    folder = tiny_pipeline(tmp_path / "base", prediction_type="v_prediction")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    noise = keyed_randn((4, *LATENT_HW), seed=0, draws=[5, 6, 7], stream="sd_sample")
    prompts = [trimester_prompt(number) for number in (1, 3, None)]
    expected = pipeline(
        prompts, latents=noise, height=64, width=128, num_inference_steps=6, output_type="pt"
    ).images
    base = load_base(str(folder))
    embeddings = encode_prompts(base, ["", *prompts])
    latents = _draw(
        base.unet,
        seeds=[5, 6, 7],
        prompt_embeddings=embeddings[1:],
        empty_embedding=embeddings[:1],
        sampler=_sampler(num_inference_steps=6),
        scheduler_config=base.scheduler_config,
    )
    images = decode_latents(base.vae, latents, batch_size=2)
    assert images.shape == (3, 3, 64, 128)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


def test_guidance_solver_and_prediction_type_matter():
    epsilon = _draw(_unet(), seeds=[5])
    for changes in (
        {"sampler": _sampler(guidance_scale=1.0)},
        {"sampler": _sampler(guidance_rescale=1.0)},
        {"sampler": _sampler(solver="dpmsolver++")},
        {"scheduler_config": SCHEDULER_SETTINGS | {"prediction_type": "v_prediction"}},
    ):
        assert (epsilon - _draw(_unet(), seeds=[5], **changes)).abs().max() > 1e-2


def test_a_latent_is_the_same_in_every_batch():
    seeds = [3, 11, 2, 7, 5]
    whole = _draw(_unet(), seeds=seeds, sampler=_sampler(batch_size=5))
    parts = _draw(_unet(), seeds=seeds, sampler=_sampler(batch_size=2))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    alone = _draw(_unet(), seeds=[7], prompt_embeddings=_embeddings(5)[3:4])
    torch.testing.assert_close(alone, whole[3:4], rtol=0, atol=1e-4)
    assert torch.equal(_draw(_unet(), seeds=seeds), _draw(_unet(), seeds=seeds))


def test_each_seed_gives_another_latent_and_the_global_state_gives_none():
    embeddings = _embeddings(1).expand(2, -1, -1)
    first, second = _draw(_unet(), seeds=[1, 2], prompt_embeddings=embeddings)
    assert (first - second).abs().max() > 0.1
    unet = _unet()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = _draw(unet, seeds=[1, 1], prompt_embeddings=embeddings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(again, torch.stack([first, first]), rtol=0, atol=1e-4)


def test_no_seeds_give_no_latents_and_no_images():
    calls = []
    latents = _draw(
        _unet(in_channels=68),
        seeds=[],
        mask_channels=mask_channels(torch.zeros(0, 1, 64, 128)),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert latents.shape == (0, 4, *LATENT_HW)
    assert calls == []
    assert decode_latents(_vae(), latents, batch_size=2).shape == (0, 3, 64, 128)


def test_progress_counts_passes_of_all_batches():
    calls = []
    _draw(
        _unet(),
        seeds=[0, 1, 2],
        sampler=_sampler(batch_size=2, num_inference_steps=3),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize(("guidance_scale", "rows"), [(1.0, 2), (2.5, 4), (0.0, 4)])
def test_only_guidance_doubles_the_batch(guidance_scale, rows):
    recorder = _Recorder(_unet())
    _draw(recorder, seeds=[0, 1], sampler=_sampler(guidance_scale=guidance_scale))
    assert [len(each) for each in recorder.inputs] == [rows] * 4


def test_the_unconditional_half_sees_neither_prompt_nor_mask():
    mask = torch.zeros(2, 1, 64, 128)
    mask[0, 0, :32], mask[1, 0, :, 50:] = 1, 1
    channels = mask_channels(mask)
    recorder = _Recorder(_unet(in_channels=68))
    _draw(recorder, seeds=[0, 1], mask_channels=channels)
    for inputs, embeddings in zip(recorder.inputs, recorder.embeddings, strict=True):
        assert inputs.shape == (4, 68, *LATENT_HW)
        assert torch.equal(inputs[:2, :4], inputs[2:, :4])
        assert not inputs[:2, 4:].any()
        assert torch.equal(inputs[2:, 4:], channels)
        assert torch.equal(embeddings[:2], _empty_embedding().expand(2, -1, -1))
        assert torch.equal(embeddings[2:], _embeddings(2))


def test_guidance_zero_ignores_prompt_and_mask():
    unet, sampler = _unet(in_channels=68), _sampler(guidance_scale=0.0)
    channels = mask_channels(torch.ones(1, 1, 64, 128))
    guided = _draw(unet, seeds=[4], mask_channels=channels, sampler=sampler)
    plain = _draw(
        unet,
        seeds=[4],
        mask_channels=torch.zeros_like(channels),
        prompt_embeddings=_empty_embedding(),
        sampler=_sampler(guidance_scale=1.0),
    )
    torch.testing.assert_close(guided, plain, rtol=0, atol=1e-4)


def test_masks_change_the_latents_and_zero_weights_do_not():
    plain, masked = _unet(), _unet(in_channels=68)
    masked.load_state_dict(
        {
            name: torch.cat([weight, torch.zeros(8, 64, 3, 3)], dim=1)
            if name == "conv_in.weight"
            else weight
            for name, weight in plain.state_dict().items()
        }
    )
    channels = mask_channels(torch.ones(2, 1, 64, 128))
    ours = _draw(masked, seeds=[0, 1], mask_channels=channels)
    torch.testing.assert_close(ours, _draw(plain, seeds=[0, 1]), rtol=0, atol=1e-4)
    with torch.no_grad():
        masked.conv_in.weight[:, 4:] = 0.1
    changed = _draw(masked, seeds=[0, 1], mask_channels=channels)
    assert (changed - ours).abs().max() > 1e-2


@pytest.mark.parametrize("lora_scale", [0.9, 0.0, 1.0, 1.7])
def test_lora_scale_is_that_of_scaled_weights(lora_scale):
    unet, by_hand = _unet(), _unet()
    _add_lora(unet)
    _add_lora(by_hand)
    with torch.no_grad():
        for name, weight in by_hand.named_parameters():
            if "lora_B" in name:
                weight *= lora_scale
    sampler = _sampler(guidance_scale=2.0)
    ours = _draw(unet, seeds=[0, 1], sampler=_sampler(guidance_scale=2.0, lora_scale=lora_scale))
    expected = _draw(by_hand, seeds=[0, 1], sampler=sampler)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    after = [m.scaling["default"] for m in unet.modules() if hasattr(m, "scaling")]
    assert len(after) > 0
    assert after == pytest.approx([3.0] * len(after), rel=1e-12)
    without = _draw(_unet(), seeds=[0, 1], sampler=sampler)
    if lora_scale == 0.0:
        torch.testing.assert_close(ours, without, rtol=0, atol=1e-4)
    else:
        assert (ours - without).abs().max() > 1e-2


def test_lora_scale_equals_the_pipelines():
    sampler = _sampler(guidance_scale=2.0, lora_scale=0.9)
    pipeline = _pipeline(solver="unipc", scheduler_config=SCHEDULER_SETTINGS)
    _add_lora(pipeline.unet)
    expected = _pipeline_latents(pipeline, sampler=sampler)
    unet = _unet()
    _add_lora(unet)
    ours = _draw(unet, seeds=[5, 6, 7], sampler=sampler)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_bf16_weights_with_and_without_autocast():
    reference = _draw(_unet(), seeds=[0, 1], sampler=_sampler(guidance_scale=2.0))
    halved = _unet().to(torch.bfloat16)
    pure = _draw(halved, seeds=[0, 1], sampler=_sampler(guidance_scale=2.0))
    mixed_unet = _unet().to(torch.bfloat16)
    mixed_unet.conv_in.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = _draw(mixed_unet, seeds=[0, 1], sampler=_sampler(guidance_scale=2.0))
    for latents in (pure, mixed):
        assert latents.dtype == torch.float32
        # bf16 keeps 8 bits, and four steps carry the rounding on.
        assert 0 < (latents - reference).std() < 0.1 * reference.std()
    images = decode_latents(_vae().to(torch.bfloat16), reference, batch_size=1)
    exact = decode_latents(_vae(), reference, batch_size=2)
    assert images.dtype == torch.float32
    assert 0 < (images - exact).abs().max() < 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_embeddings": _embeddings(3)}, "prompt_embeddings have shape"),
        ({"prompt_embeddings": _embeddings(2)[0]}, "prompt_embeddings have shape"),
        ({"empty_embedding": _embeddings(2)}, "empty_embedding has shape"),
        ({"empty_embedding": _empty_embedding()[..., :6]}, "empty_embedding has shape"),
        ({"mask_channels": torch.zeros(2, 64, 16, 8)}, r"give \(2, C, 8, 16\)"),
        ({"mask_channels": torch.zeros(1, 64, 8, 16)}, r"give \(2, C, 8, 16\)"),
        ({"mask_channels": torch.zeros(64)}, "mask_channels have shape"),
        ({"mask_channels": torch.zeros(2, 64, 8, 16)}, "takes 4 channels"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_pass(changes, said):
    recorder = _Recorder(_unet())
    with pytest.raises(ValueError, match=said) as caught:
        _draw(recorder, seeds=[0, 1], **changes)
    assert "\n" not in str(caught.value)
    assert recorder.inputs == []
    with pytest.raises(ValueError, match="takes 68 channels, but 4 of the latents and 0"):
        _draw(_unet(in_channels=68), seeds=[0])


@pytest.mark.parametrize(
    ("shape", "batch_size", "said"),
    [((4, 8, 8), 1, "latents"), ((1, 3, 8, 8), 1, "latents"), ((1, 4, 8, 8), 0, "batch_size=0")],
)
def test_decoding_refuses(shape, batch_size, said):
    with pytest.raises(ValueError, match=said):
        decode_latents(_vae(), torch.zeros(shape), batch_size=batch_size)


def test_solvers_follow_the_bases_schedule():
    for solver, kind in SOLVERS.items():
        made = make_solver(solver, scheduler_config=SCHEDULER_SETTINGS)
        assert type(made) is kind
        # alpha_bar of SD 1.5's schedule after its first and its last step.
        assert made.alphas_cumprod[0].item() == pytest.approx(1 - 0.00085, abs=1e-6)
        assert made.alphas_cumprod[-1].item() == pytest.approx(0.00466, abs=1e-5)
        assert made.config.solver_order == 2
        assert made.init_noise_sigma == 1.0
    with pytest.raises(ValueError, match="no solver 'euler'"):
        make_solver("euler", scheduler_config=SCHEDULER_SETTINGS)


def test_compiling_pays_from_as_many_images_as_were_measured():
    guided = _sampler(num_inference_steps=30)
    latent_hw = (64, 64)
    assert not compiling_pays(1300, latent_hw=latent_hw, sampler=guided)
    assert compiling_pays(1330, latent_hw=latent_hw, sampler=guided)
    # Half the passes without guidance, and a quarter of the positions.
    unguided = _sampler(num_inference_steps=30, guidance_scale=1.0)
    assert not compiling_pays(2600, latent_hw=latent_hw, sampler=unguided)
    assert compiling_pays(2660, latent_hw=latent_hw, sampler=unguided)
    assert not compiling_pays(5200, latent_hw=(32, 32), sampler=guided)
    assert compiling_pays(5320, latent_hw=(32, 32), sampler=guided)

"""Vision transformers as the encoders of segmentation networks, in 2D and 3D."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segline.models.blocks import CONV, LINEAR_MODE


class SelfAttention(nn.Module):
    """Every token looks at every other one, with several heads.

    Keys have no bias: it would add the same to all scores of a query, which their softmax takes away.

    Args:
        bias: Whether queries and values have one.

    Shape:
        `[B, N, embed_dim]` -> `[B, N, embed_dim]`.

    Reference:
        Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3.2.2. https://arxiv.org/abs/1706.03762
    """

    def __init__(self, embed_dim: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.keys = nn.Linear(embed_dim, embed_dim, bias=False)
        self.values = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        layers = self.queries, self.keys, self.values
        query, key, value = (layer(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for layer in layers)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Attention, then a perceptron of one hidden layer; each has a layer norm before it and adds to what it sees.

    Args:
        mlp_ratio: Width of the hidden layer, in units of `embed_dim`.
        dropout: Share of values dropped behind each layer of the perceptron.
        bias: Whether queries and values have one.
        eps: Added to the variance by norms.

    Shape:
        `[B, N, embed_dim]` -> `[B, N, embed_dim]`.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: int, dropout: float, bias: bool, eps: float) -> None:
        super().__init__()
        hidden = mlp_ratio * embed_dim
        self.attention = nn.Sequential(nn.LayerNorm(embed_dim, eps=eps), SelfAttention(embed_dim, num_heads, bias))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(embed_dim, eps=eps),
            nn.Linear(embed_dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, embed_dim),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens)
        return tokens + self.perceptron(tokens)


class VisionTransformer(nn.Module):
    """Layers of attention over the patches of a grid, which learn where they lie.

    The position embedding is interpolated (bi- or trilinearly) to grids other than its own.

    Args:
        in_channels: Channels of what is cut into patches.
        patch_size: Pixels along each axis of a patch.
        grid_size: Patches along each axis of the position embedding.
        embed_dim: Width of a token.
        num_heads: Heads of each attention, which share the width.
        num_layers: Attentions with their perceptrons.
        mlp_ratio: Width of a perceptron's hidden layer, in units of `embed_dim`.
        dropout: Share of values dropped behind the embedding and each layer of a perceptron.
        bias: Whether queries and values have one.
        eps: Added to the variance by norms.

    Shape:
        `[B, in_channels, *S]` -> for each layer `[B, embed_dim, *S / patch_size]`.

    Raises:
        ValueError: No layer, no head, no perceptron, a width that the heads cannot share, or no grid.

    Reference:
        Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021. https://arxiv.org/abs/2010.11929. Departures: no class token, no
        bias of keys, which is without effect.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        patch_size: int,
        grid_size: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        mlp_ratio: int,
        dropout: float,
        bias: bool,
        eps: float,
    ) -> None:
        super().__init__()
        for name, number in {"num_layers": num_layers, "num_heads": num_heads, "mlp_ratio": mlp_ratio}.items():
            if number < 1:
                raise ValueError(f"{name} is {number}; expected 1 or more")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim is {embed_dim}; expected a multiple of num_heads, {num_heads}")
        if grid_size < 1:
            raise ValueError(
                "image_size is less than a pixel; expected the size of the images that are trained on, such as 224"
            )
        self.mode = LINEAR_MODE[spatial_dims]
        self.embed = CONV[spatial_dims](in_channels, embed_dim, patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.empty(1, embed_dim, *[grid_size] * spatial_dims))
        self.dropout = nn.Dropout(dropout)
        layers = [TransformerLayer(embed_dim, num_heads, mlp_ratio, dropout, bias, eps) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(embed_dim, eps=eps)
        nn.init.trunc_normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> list[Tensor]:
        """What each layer makes of an image; the last one's is normalised."""
        patches = self.embed(image)
        grid = patches.shape[2:]
        position = F.interpolate(self.position, size=grid, mode=self.mode, align_corners=False)
        tokens = self.dropout((patches + position).flatten(2).transpose(1, 2))
        outputs = []
        for layer in self.layers:
            tokens = layer(tokens)
            outputs.append(tokens)
        outputs[-1] = self.norm(tokens)
        # In the usual order of memory: of another one an export takes maps that are one patch wide for a case of their own.
        return [output.transpose(1, 2).contiguous().unflatten(2, grid) for output in outputs]

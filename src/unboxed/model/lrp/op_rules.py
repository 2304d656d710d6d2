"""Which ops need which rule, by their plain names (see `model.op_tables`), and which nodes of the graph are ruled."""

from __future__ import annotations


def _split_words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPS_WITHOUT_COMPUTATION = _split_words("get set delete requires_grad register_hook retain_grad data resize backward")
"""What is no op: properties, and calls that must reach the tensor itself."""

SHAPE_OPS = _split_words("""
    view view_as view_copy reshape reshape_as flatten unflatten ravel squeeze unsqueeze permute transpose swapaxes
    swapdims movedim moveaxis t adjoint contiguous clone alias detach to type type_as float double half bfloat16 cpu
    cuda expand expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile chunk split split_with_sizes
    tensor_split unsafe_chunk unsafe_split hsplit vsplit unbind narrow select slice getitem index index_select gather
    take take_along_dim unfold fold im2col col2im as_strided diagonal diag tril triu flip fliplr flipud roll rot90 pad
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d _pad_circular pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle lift_fresh
    dropout dropout1d dropout2d dropout3d native_dropout feature_dropout alpha_dropout feature_alpha_dropout
    masked_fill _unsafe_view unsafe_view _to_copy to_copy resolve_conj resolve_neg identity
""")
"""Move numbers, or keep some of them."""

AFFINE_OPS = _split_words("""
    add sub subtract radd rsub iadd isub neg negative positive mul multiply rmul imul div divide true_divide truediv
    itruediv idiv
""")

CONCATENATION_OPS = _split_words("cat concat concatenate stack hstack vstack dstack column_stack")

WEIGHTLESS_LINEAR_OPS = _split_words("""
    sum mean nanmean nansum cumsum sum_to_size avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d interpolate upsample upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_bicubic2d
    upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa where masked_scatter masked_select index_put
    index_fill index_add index_copy scatter scatter_add copy fill zero setitem trace addr
""")
"""Weights that no rule is for: plain sums."""

ORDER_STATISTIC_OPS = _split_words("""
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool2d_with_indices
    adaptive_max_pool1d_with_indices adaptive_max_pool3d_with_indices max amax min amin median maximum minimum fmax fmin
    topk sort kthvalue
""")

PLAIN_GRADIENT_OPS = SHAPE_OPS | AFFINE_OPS | CONCATENATION_OPS | WEIGHTLESS_LINEAR_OPS | ORDER_STATISTIC_OPS
"""Their gradient shares relevance as it should be."""

ANNOTATION_PRESERVING_OPS = (
    SHAPE_OPS
    | AFFINE_OPS
    | CONCATENATION_OPS
    | _split_words("""
    interpolate upsample upsample_nearest2d upsample_bilinear2d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d
""")
)
"""What is known of pixels, or of a gate, can be known of what these make of it."""

ELEMENTWISE_OPS = _split_words("""
    relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign tanh sigmoid logsigmoid log_sigmoid hardtanh
    hardswish hardsigmoid hardshrink softshrink tanhshrink threshold prelu rrelu clamp clip clamp_min clamp_max erf exp
    expm1 log1p sqrt square pow ipow abs absolute sin cos atan arctan asinh nan_to_num swish
""")

GATE_OPS = _split_words("sigmoid hardsigmoid softmax exp erf sqrt norm linalg_norm linalg_vector_norm std var")
BOUNDED_FACTOR_OPS = _split_words("tanh relu6 hardtanh clamp clip softsign")

GRADIENT_SCALE_BY_OP = {
    "softmax": 1.0, "log_softmax": 1.0, "logsumexp": 1.0, "norm": 1.0, "linalg_norm": 1.0, "linalg_vector_norm": 1.0,
    "std": 1.0, "var": 0.5, "softmin": 1.0,
}  # fmt: skip
"""Taylor expansions at the point itself, times a share: a square has twice its value as gradient times input."""

PRODUCT_OPS = _split_words("matmul rmatmul imatmul mm bmm mv dot inner einsum tensordot bilinear outer")
CONV_OPS = _split_words("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution")
RECIPROCAL_OPS = _split_words("reciprocal rsqrt rtruediv rdiv")
DECOMPOSED_FUNCTIONS = _split_words("""
    multi_head_attention_forward batch_norm layer_norm group_norm instance_norm rms_norm normalize local_response_norm
    glu
""")
"""Functions of torch.nn.functional that are looked into."""

_RULED_NODE_BASE_NAMES = _split_words("""
    BackwardRuleFunction View ViewAs Reshape ReshapeAlias UnsafeView Squeeze Unsqueeze Alias Clone Transpose Permute T
    Slice Select
    ToCopy Expand Repeat RepeatInterleave Split SplitWithSizes UnsafeSplit Chunk Unbind Stack Cat Index IndexSelect
    Gather Take Unfold Im2Col Col2Im AsStrided Diagonal Diag Tril Triu Flip Roll Rot90 ConstantPadNd ReflectionPad1D
    ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D PixelShuffle PixelUnshuffle
    NativeChannelShuffle MaskedFill MaskedScatter MaskedSelect Where Add Sub Rsub Neg Mul Div Sum Mean Nansum Cumsum
    MaxPool2D MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D AvgPool2D AvgPool3D
    AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D Max Amax Min Amin Median Maximum Minimum Fmax Fmin Topk
    Sort Kthvalue UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleBilinear2D UpsampleLinear1D
    UpsampleBicubic2D UpsampleTrilinear3D UpsampleNearestExact2D UpsampleBilinear2DAa IndexPut IndexPutImpl IndexFill
    IndexAdd IndexCopy Scatter ScatterAdd Copy Fill Zero NativeDropout Dropout BackwardHookFunction
    LiftFresh Positive Trace
""")
NODE_NAMES_WITH_RULES = (
    *(f"{n}Backward" for n in _RULED_NODE_BASE_NAMES),
    *(f"{at}{n}" for at in ("", "torch::autograd::") for n in ("AccumulateGrad", "CopyBackwards", "CopySlices")),
)
"""Autograd nodes that hand down relevance as they should, by the start of their names."""

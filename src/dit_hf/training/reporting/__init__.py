"""What a training reports: metrics, previews, the loss curve, throughput, and the folder that holds them."""

"""Sampling: from class labels to images, by running a diffusion process backwards.

Training mixed data x_0 with noise, x_t = a_t x_0 + b_t noise, from t = 0 (data) to t = T (noise), and taught a DiT to
predict the noise from x_t, t and the class (or x_0, or a mix of both; or, in flow matching, the velocity from data to
noise). Sampling starts from noise and takes N steps down. A step asks the model what the noise in x_t is; that answer
gives the direction in which x changes if t falls (the probability flow ODE), and a scheduler of diffusers follows it to
the next t, exactly or with fresh noise. Classifier-free guidance asks twice, with the class and without one, and goes
further in the direction of the difference.

The files, in the order in which a call uses them: `class_names` (names to ids), `schedulers` and `rehearsal` (which
timesteps, what each scheduler can do), `guidance` (which steps are guided, and how), `latents` (sizes, first noise, the
VAE), `sources` (images to begin with), `denoising` (the model's answer at a step) and `callbacks` (watching, stopping).
`dit_hf.pipeline_dit` puts them into a loop. The theory: Ho et al. 2020 (arXiv 2006.11239), Song et al. 2021 (arXiv
2011.13456), Ho & Salimans 2022 (arXiv 2207.12598).
"""

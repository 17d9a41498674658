// Generates greedily with a vtc bundle in transformers.js, offline.
//
// stdin:  {"bundle": directory, "dtype": "fp32", "max_new_tokens": n, "cases": [{"image": file, "prompt": text}, ...]}
// stdout: [{"prompt_ids": [...], "token_ids": [...], "text": "..."}, ...], one for each case

import { readFileSync } from 'node:fs';
import path from 'node:path';
import {
    AutoModelForImageTextToText,
    AutoProcessor,
    RawImage,
    env,
} from '@huggingface/transformers';

const request = JSON.parse(readFileSync(0, 'utf8'));
const directory = path.resolve(request.bundle);
env.allowRemoteModels = false;
env.useFSCache = false;
env.localModelPath = path.dirname(directory);
const name = path.basename(directory);

const processor = await AutoProcessor.from_pretrained(name);
const model = await AutoModelForImageTextToText.from_pretrained(name, {
    dtype: request.dtype,
    device: 'cpu',
});

const bos = processor.tokenizer.bos_token;
const answers = [];
for (const { image, prompt } of request.cases) {
    // Chat templates write the start token themselves; the tokenizer must not add a second one.
    const add_special_tokens = !(bos && prompt.startsWith(bos));
    const inputs = await processor(await RawImage.read(image), prompt, { add_special_tokens });
    const output = await model.generate({
        ...inputs,
        max_new_tokens: request.max_new_tokens,
        do_sample: false,
    });
    const prompt_ids = inputs.input_ids.tolist()[0].map(Number);
    const token_ids = output.tolist()[0].slice(prompt_ids.length).map(Number);
    const text = processor.tokenizer.decode(token_ids, { skip_special_tokens: true });
    answers.push({ prompt_ids, token_ids, text });
}
process.stdout.write(JSON.stringify(answers));

// Earlier conversations, in this browser only. Of images only thumbnails are kept.

const NAME = "lora_cot.history";
const MOST_CHARACTERS = 2_000_000;
const MOST = 50;

/** All conversations, newest first; none where the browser keeps nothing. */
export function load() {
  try {
    const found = JSON.parse(localStorage.getItem(NAME) ?? "[]");
    return Array.isArray(found) ? found.filter((one) => one?.id && Array.isArray(one.turns)) : [];
  } catch {
    return [];
  }
}

/** Keep a conversation as the newest, in place of what was kept of it; the oldest make room. False: it cannot be kept. */
export function keep({ image, ...conversation }) {
  return store([conversation, ...load().filter((one) => one.id !== conversation.id)].slice(0, MOST));
}

export function remove(id) {
  store(load().filter((one) => one.id !== id));
}

export function removeAll() {
  store([]);
}

function store(list) {
  for (let kept = list; ; kept = kept.length > 1 ? kept.slice(0, -1) : [shortened(kept[0])]) {
    const text = JSON.stringify(kept);
    const last = kept.length <= 1 && (!kept.length || kept[0].isShort);
    if (text.length > MOST_CHARACTERS && !last) continue;
    try {
      localStorage.setItem(NAME, text);
      return true;
    } catch {
      if (last) return false;
    }
  }
}

/** Without candidates. */
function shortened(conversation) {
  const turns = conversation.turns.map((turn) => ({ ...turn, stages: turn.stages.map(({ name, text }) => ({ name, text })) }));
  return { ...conversation, turns, isShort: true };
}

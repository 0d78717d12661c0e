// Elements, made in a line. Text is always text: nothing here takes HTML.

type Child = Node | string | number | false | null | undefined;
type Attributes = Record<string, string | number | boolean | undefined | ((event: Event) => void)>;

// An element; attributes whose names begin with "on" are listeners.
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== false && child !== null && child !== undefined).map(text));
  return element;
}

const text = (child: Child): Node | string => (typeof child === 'number' ? String(child) : (child as Node | string));

// What stands in the page under this identifier; the page is ours, so it does.
export function the<E extends Element = HTMLElement>(id: string): E {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element as unknown as E;
}

// Writes only where something changes, so that a screen reader hears of changes alone.
export function write(element: Element, words: string): void {
  if (element.textContent !== words) element.textContent = words;
}

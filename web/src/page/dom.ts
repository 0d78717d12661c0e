// Creates and finds elements. Text is never parsed as HTML.

type Child = Node | string | number | false | null | undefined;
type Attributes = Record<string, string | number | boolean | undefined | ((event: Event) => void)>;

// An element. An attribute `on…` with a function as its value adds a listener.
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

// The element with this identifier, which the page's HTML must have.
export function byId<E extends Element = HTMLElement>(id: string): E {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element as unknown as E;
}

// Sets the text only if it differs, because a screen reader announces each write.
export function write(element: Element, words: string): void {
  if (element.textContent !== words) element.textContent = words;
}

//! What a Rust source file imports, and how long it and its functions are. Leaves out what is only built for tests.

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, Block, ImplItem, ImplItemFn, Item, ItemFn, ItemImpl, ItemMod, ItemUse, Macro, MetaList, Path,
    Signature, TraitItemFn, Type, UseTree,
    visit::{self, Visit},
};

/// A file, read.
#[derive(Default)]
pub(super) struct Source {
    /// Every path of two names or more, and every name that is imported, from `crate::` where it leads there.
    pub(super) imports: Vec<String>,
    pub(super) functions: Vec<Function>,
}

/// A function with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// Its name, behind that of the type it belongs to.
    pub(super) name: String,
    /// The line of its `fn`.
    pub(super) at: usize,
    /// From there to its last brace.
    pub(super) lines: usize,
}

impl Source {
    /// Reads `text`, the file of a module that is `depth` modules below the crate's root.
    pub(super) fn read(text: &str, depth: usize) -> syn::Result<Self> {
        let mut reader = Reader { depth, owner: None, source: Self::default() };
        reader.visit_file(&syn::parse_file(text)?);
        Ok(reader.source)
    }
}

struct Reader {
    depth: usize,
    /// The type whose `impl` is read.
    owner: Option<String>,
    source: Source,
}

impl Reader {
    fn import(&mut self, names: &[String]) {
        let ups = names.iter().take_while(|name| *name == "super").count();
        let found = match names.first().map(String::as_str) {
            // One that stays inside its own room says nothing about others.
            None | Some("self") => return,
            Some("super") if ups < self.depth => return,
            Some("super") => format!("crate::{}", names[ups..].join("::")),
            Some(_) => names.join("::"),
        };
        self.source.imports.push(found);
    }

    fn tree(&mut self, tree: &UseTree, above: &[String]) {
        let with = |name: &syn::Ident| [above, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&path.tree, &with(&path.ident)),
            UseTree::Name(name) if name.ident == "self" => self.import(above),
            UseTree::Name(name) => self.import(&with(&name.ident)),
            UseTree::Rename(name) if name.ident == "self" => self.import(above),
            UseTree::Rename(name) => self.import(&with(&name.ident)),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, above)),
            _ => self.import(above),
        }
    }

    /// The paths in what a macro or an attribute is given, which is not parsed.
    fn tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut colons) = (Vec::new(), 0);
        for token in tokens {
            match token {
                TokenTree::Ident(name) if colons == 2 && !path.is_empty() => path.push(name.to_string()),
                TokenTree::Ident(name) => {
                    self.path(&path);
                    path = vec![name.to_string()];
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => {
                    self.path(&std::mem::take(&mut path));
                    self.tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => self.path(&std::mem::take(&mut path)),
            }
            colons = 0;
        }
        self.path(&path);
    }

    fn path(&mut self, names: &[String]) {
        if names.len() > 1 {
            self.import(names);
        }
    }

    fn function(&mut self, signature: &Signature, block: &Block) {
        let at = signature.fn_token.span.start().line;
        let end = block.brace_token.span.close().end().line;
        let name = signature.ident.to_string();
        let name = self.owner.as_ref().map_or(name.clone(), |owner| format!("{owner}::{name}"));
        self.source.functions.push(Function { name, at, lines: end + 1 - at });
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if !attributes(item).iter().any(is_test) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !attributes.iter().any(is_test) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.depth += 1;
        visit::visit_item_mod(self, module);
        self.depth -= 1;
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let owner = match &*item.self_ty {
            Type::Path(path) => path.path.segments.last().map(|name| name.ident.to_string()),
            _ => None,
        };
        let outer = std::mem::replace(&mut self.owner, owner);
        visit::visit_item_impl(self, item);
        self.owner = outer;
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let names: Vec<String> = path.segments.iter().map(|name| name.ident.to_string()).collect();
        self.path(&names);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_meta_list(&mut self, list: &'ast MetaList) {
        self.tokens(list.tokens.clone());
        visit::visit_meta_list(self, list);
    }

    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.function(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.function(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        if let Some(block) = &function.default {
            self.function(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether this is `#[cfg(test)]`.
fn is_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|word| word == "test")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(text: &str, depth: usize) -> Vec<String> {
        Source::read(text, depth).unwrap().imports
    }

    #[test]
    fn imports_are_found_whatever_the_spelling() {
        for (text, depth, expected) in [
            ("use crate::a::{self, b::C as D, e::*};", 1, vec!["crate::a", "crate::a::b::C", "crate::a::e"]),
            (
                "use super::a::b; mod inner { use super::super::c; use super::d; }",
                1,
                vec!["crate::a::b", "crate::c"],
            ),
            ("use super::super::a;", 2, vec!["crate::a"]),
            ("fn f(x: &dyn a::B<c::D>) {}", 1, vec!["a::B", "c::D"]),
            ("fn f() { g!(\"{}\", a::b(c::d!())) }", 1, vec!["a::b", "c::d"]),
            ("#[derive(a::B)] struct S;", 1, vec!["a::B"]),
        ] {
            assert_eq!(imports(text, depth), expected, "{text}");
        }
    }

    #[test]
    fn functions_bear_their_types_name_and_their_length() {
        let text = "fn a() {}\nimpl B {\n    fn c() {\n    }\n    #[cfg(test)]\n    fn d() {}\n}\ntrait E { fn f(); }\n";
        let found = Source::read(text, 1).unwrap().functions;
        let function = |name: &str, at, lines| Function { name: name.to_owned(), at, lines };
        assert_eq!(found, [function("a", 1, 1), function("B::c", 3, 2)]);
    }
}

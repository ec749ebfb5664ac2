// SPDX-License-Identifier: GPL-2.0-only
/*
 * The persistent radix tree; see tree.h for what it is and how it is locked.
 *
 * Invariants:
 *
 * - A node whose owner is a tree's epoch is reached from that tree alone, and
 *   so are all nodes above it.  Nobody copies it, so nobody can take a
 *   reference on it or on what it points to, except by forking the tree.
 * - A node that is not owned is never changed.  It may be copied.
 * - Taking over a node that is not owned is the same as copying it and dropping
 *   the original, done in place: right when its only reference is that of an
 *   owned node (or root), because then nobody else can reach it.
 * - A bit in a leaf's @dirty says that the tree changed the granule in that slot
 *   since its last fork; one in @open that the granule is open (tree.h), which
 *   only a dirty one is.  A bit in an interior node's @open says that there may
 *   be open granules under that slot; where there is one, all the bits on its
 *   path are set.  The bits mean something in owned nodes only.
 * - No node is empty, once the tree's lock is released.
 */
#include <linux/bitops.h>
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/minmax.h>
#include <linux/percpu_counter.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "account.h"
#include "delay.h"
#include "granule.h"
#include "tree.h"

/**
 * struct cowsnap_node - a node of the tree, a leaf when @shift is 0
 * @refs: nodes and trees that point here
 * @shift: log2 of the indices that one slot stands for
 * @count: slots in use
 * @linked: in a leaf, the bits in @open of all nodes above are set
 * @owner: the epoch of the only tree that reaches this node and may change it
 * @dirty: a bit for each slot of a leaf, see above
 * @open: a bit for each slot, see above
 * @rcu: for freeing
 * @slot: interior nodes, or in a leaf granules
 *
 * @count, @dirty, @open and @slot of an owned leaf are protected by its class
 * lock, everything else in owned nodes by tree->lock.
 */
struct cowsnap_node {
	refcount_t refs;
	u8 shift;
	u8 count;
	bool linked;
	u64 owner;
	unsigned long dirty;
	unsigned long open;
	struct rcu_head rcu;
	void __rcu *slot[];
};

static_assert(COWSNAP_NODE_SLOTS <= BITS_PER_LONG);
static_assert(COWSNAP_LEAF_SLOTS <= BITS_PER_LONG);
static_assert(COWSNAP_LEAF_SHIFT +
	      (COWSNAP_TREE_HEIGHT - 1) * COWSNAP_NODE_SHIFT >=
	      COWSNAP_INDEX_BITS);

static struct kmem_cache *leaf_cache;
static struct kmem_cache *node_cache;
static struct percpu_counter nr_nodes;

/* Starts at 1: no node is ever owned by epoch 0. */
static atomic64_t last_epoch = ATOMIC64_INIT(0);

static u64 new_epoch(void)
{
	return atomic64_inc_return(&last_epoch);
}

int cowsnap_tree_module_init(void)
{
	int err = percpu_counter_init(&nr_nodes, 0, GFP_KERNEL);

	if (err)
		return err;
	leaf_cache = kmem_cache_create("cowsnap_leaf",
				       struct_size((struct cowsnap_node *)NULL,
						   slot, COWSNAP_LEAF_SLOTS),
				       0, SLAB_ACCOUNT, NULL);
	if (!leaf_cache)
		goto err_destroy_counter;
	node_cache = kmem_cache_create("cowsnap_node",
				       struct_size((struct cowsnap_node *)NULL,
						   slot, COWSNAP_NODE_SLOTS),
				       0, SLAB_ACCOUNT, NULL);
	if (!node_cache)
		goto err_destroy_leaf_cache;
	return 0;

err_destroy_leaf_cache:
	kmem_cache_destroy(leaf_cache);
err_destroy_counter:
	percpu_counter_destroy(&nr_nodes);
	return -ENOMEM;
}

void cowsnap_tree_module_exit(void)
{
	/* Waits for every node_free_rcu(). */
	rcu_barrier();
	kmem_cache_destroy(node_cache);
	kmem_cache_destroy(leaf_cache);
	percpu_counter_destroy(&nr_nodes);
}

/* The nodes of all trees; those that wait for RCU to be freed do not count. */
u64 cowsnap_tree_nodes(void)
{
	return percpu_counter_sum_positive(&nr_nodes);
}

static u8 shift_above(u8 shift)
{
	return shift ? shift + COWSNAP_NODE_SHIFT : COWSNAP_LEAF_SHIFT;
}

static u8 shift_below(u8 shift)
{
	return shift == COWSNAP_LEAF_SHIFT ? 0 : shift - COWSNAP_NODE_SHIFT;
}

static unsigned long shift_slots(u8 shift)
{
	return shift ? COWSNAP_NODE_SLOTS : COWSNAP_LEAF_SLOTS;
}

/* The last index that a root with that shift stands for. */
static u64 shift_last(u8 shift)
{
	return ((u64)shift_slots(shift) << shift) - 1;
}

static unsigned long node_slots(const struct cowsnap_node *node)
{
	return shift_slots(node->shift);
}

static unsigned long slot_of(const struct cowsnap_node *node, u64 index)
{
	return (index >> node->shift) & (node_slots(node) - 1);
}

/* Does @root stand for @index? */
static bool root_covers(const struct cowsnap_node *root, u64 index)
{
	return root && index <= shift_last(root->shift);
}

/* For a slot that the caller has locked, or that does not change any more. */
static void *slot_get(const struct cowsnap_node *node, unsigned long slot)
{
	return rcu_dereference_protected(node->slot[slot], true);
}

static struct cowsnap_node *root_get(const struct cowsnap_tree *tree)
{
	return rcu_dereference_protected(tree->root, true);
}

static struct cowsnap_node *node_alloc(u8 shift, u64 owner)
{
	struct cowsnap_node *node;

	node = kmem_cache_zalloc(shift ? node_cache : leaf_cache, GFP_KERNEL);
	if (!node)
		return NULL;
	refcount_set(&node->refs, 1);
	node->shift = shift;
	node->owner = owner;
	percpu_counter_inc(&nr_nodes);
	return node;
}

static void node_free_rcu(struct rcu_head *rcu)
{
	struct cowsnap_node *node = container_of(rcu, struct cowsnap_node, rcu);

	kmem_cache_free(node->shift ? node_cache : leaf_cache, node);
}

/*
 * Drops a reference on @node and returns how many granules went with it.  Calls
 * itself to the depth of the tree, COWSNAP_TREE_HEIGHT, whatever the number of
 * generations that shared the node.
 */
static unsigned long node_put(struct cowsnap_node *node)
{
	unsigned long freed = 0;
	unsigned long slot;
	unsigned int left;

	if (!refcount_dec_and_test(&node->refs))
		return 0;
	cowsnap_delay(COWSNAP_DELAY_node_dying);

	left = node->count;
	for (slot = 0; left; slot++) {
		void *child = slot_get(node, slot);

		if (!child)
			continue;
		left--;
		if (node->shift)
			freed += node_put(child);
		else
			freed += cowsnap_granule_put(child);
	}
	percpu_counter_dec(&nr_nodes);
	/* A fault that began before the node was replaced may still read it. */
	call_rcu(&node->rcu, node_free_rcu);
	cond_resched();
	return freed;
}

static void tree_node_put(struct cowsnap_tree *tree, struct cowsnap_node *node)
{
	unsigned long freed = node_put(node);

	if (freed)
		cowsnap_account_uncharge(tree->account, freed);
}

/**
 * cowsnap_tree_init() - make an empty tree
 * @tree: to be made
 * @account: what granules that die in it are uncharged from
 */
void cowsnap_tree_init(struct cowsnap_tree *tree,
		       struct cowsnap_account *account)
{
	RCU_INIT_POINTER(tree->root, NULL);
	tree->epoch = new_epoch();
	tree->moves = 0;
	mutex_init(&tree->lock);
	tree->account = account;
}

/**
 * cowsnap_tree_share() - the first half of a fork: give a child what a tree has
 * @child: an empty tree that nobody else knows yet
 * @parent: all of its class locks are held until it is sealed
 *
 * Until cowsnap_tree_seal() the child may be changed, the parent may not; and
 * the fork can be given up by destroying the child.
 */
void cowsnap_tree_share(struct cowsnap_tree *child, struct cowsnap_tree *parent)
{
	struct cowsnap_node *root = root_get(parent);

	if (root)
		refcount_inc(&root->refs);
	RCU_INIT_POINTER(child->root, root);
}

/**
 * cowsnap_tree_seal() - from now on the tree owns no node, nothing is dirty
 * @tree: all of its class locks are held
 */
void cowsnap_tree_seal(struct cowsnap_tree *tree)
{
	tree->epoch = new_epoch();
}

/**
 * cowsnap_tree_destroy() - let go of everything
 * @tree: nobody uses it any more
 *
 * O(what only this tree reached); lets the scheduler in.
 */
void cowsnap_tree_destroy(struct cowsnap_tree *tree)
{
	struct cowsnap_node *root = root_get(tree);

	might_sleep();
	RCU_INIT_POINTER(tree->root, NULL);
	if (root)
		tree_node_put(tree, root);
	mutex_destroy(&tree->lock);
}

/*
 * Who walks without tree->lock may stand in a node that is shared, and that
 * somebody replaces in this tree meanwhile.  RCU keeps the node; but now another
 * tree may be the only one to reach it, and take it over and change it, and then
 * what the walk finds is the other tree's.  So replacing or removing nodes is
 * counted, before the reference on them is dropped, and who walked past a count
 * walks again.
 *
 *   walk in tree A                own in tree A              own in tree B
 *   walk_begin
 *   reads a pointer to N
 *                                 puts a copy in N's place
 *                                 node_moved
 *                                 drops its reference on N
 *                                                            takes N over
 *                                                            changes N
 *   reads the change in N
 *   walk_again: true
 */
static unsigned long walk_begin(struct cowsnap_tree *tree)
{
	/* Pairs with node_moved(): who sees the count sees the copy. */
	return smp_load_acquire(&tree->moves);
}

static bool walk_again(struct cowsnap_tree *tree, unsigned long begin)
{
	/* After all that was read; refcount_dec() orders the other side. */
	smp_rmb();
	return READ_ONCE(tree->moves) != begin;
}

static void node_moved(struct cowsnap_tree *tree)
{
	lockdep_assert_held(&tree->lock);
	/* Pairs with walk_begin(). */
	smp_store_release(&tree->moves, tree->moves + 1);
}

/**
 * cowsnap_tree_swap() - exchange what two trees hold
 * @a: all of its class locks are held
 * @b: a tree that nobody else knows
 *
 * Neither owns a node afterwards.
 */
void cowsnap_tree_swap(struct cowsnap_tree *a, struct cowsnap_tree *b)
{
	struct cowsnap_node *root = root_get(a);

	mutex_lock(&a->lock);
	rcu_assign_pointer(a->root, root_get(b));
	rcu_assign_pointer(b->root, root);
	node_moved(a);
	mutex_unlock(&a->lock);
	cowsnap_tree_seal(a);
	cowsnap_tree_seal(b);
}

/* Under RCU; for a walk that is checked. */
static struct cowsnap_node *find_leaf(struct cowsnap_tree *tree, u64 index)
{
	struct cowsnap_node *node = rcu_dereference(tree->root);

	if (!root_covers(node, index))
		return NULL;
	cowsnap_delay_busy(COWSNAP_DELAY_node_found);
	while (node && node->shift) {
		node = rcu_dereference(node->slot[slot_of(node, index)]);
		cowsnap_delay_busy(COWSNAP_DELAY_node_found);
	}
	return node;
}

/* The leaf of @index, whose class lock keeps it in this tree, and so as it is. */
static struct cowsnap_node *lookup_leaf(struct cowsnap_tree *tree, u64 index)
{
	struct cowsnap_node *leaf;
	unsigned long begin;

	rcu_read_lock();
	do {
		begin = walk_begin(tree);
		leaf = find_leaf(tree, index);
	} while (walk_again(tree, begin));
	rcu_read_unlock();
	return leaf;
}

/**
 * cowsnap_tree_lookup() - what is at an index?
 * @tree: the tree
 * @index: its class lock is held, or the tree does not change any more
 *
 * Return: the granule, with no reference taken, or NULL for a hole.
 */
struct cowsnap_granule *cowsnap_tree_lookup(struct cowsnap_tree *tree,
					    u64 index)
{
	struct cowsnap_node *leaf = lookup_leaf(tree, index);

	return leaf ? slot_get(leaf, slot_of(leaf, index)) : NULL;
}

/**
 * cowsnap_tree_owned() - get a leaf that may be changed, if it is there
 * @tree: the tree
 * @index: its class lock is held; or under RCU, to look at the leaf only
 *
 * Reads the path while others may replace nodes of it, but never the ones it looks
 * for: what is owned stays, and an epoch is not used twice, so a node that says it
 * is owned is, however old the pointer that led to it.
 *
 * Return: the leaf, or NULL when it takes cowsnap_tree_take().
 */
struct cowsnap_node *cowsnap_tree_owned(struct cowsnap_tree *tree, u64 index)
{
	struct cowsnap_node *node;

	rcu_read_lock();
	node = rcu_dereference(tree->root);
	if (!root_covers(node, index))
		node = NULL;
	while (node) {
		/* Looked at once: it may be taken over meanwhile. */
		if (READ_ONCE(node->owner) != tree->epoch)
			node = NULL;
		else if (node->shift)
			node = rcu_dereference(node->slot[slot_of(node,
								  index)]);
		else
			break;
	}
	rcu_read_unlock();
	return node;
}

/**
 * cowsnap_tree_find() - what is at an index, and may the leaf be changed?
 * @tree: the tree
 * @index: its class lock is held
 * @granule: gets the granule, with no reference taken, or NULL for a hole
 *
 * cowsnap_tree_lookup() and cowsnap_tree_owned() in one walk, which needs the lock: who
 * owns a leaf owns the path to it.
 *
 * Return: the leaf, or NULL when it takes cowsnap_tree_take().
 */
struct cowsnap_node *cowsnap_tree_find(struct cowsnap_tree *tree, u64 index,
				       struct cowsnap_granule **granule)
{
	struct cowsnap_node *leaf = lookup_leaf(tree, index);

	*granule = leaf ? slot_get(leaf, slot_of(leaf, index)) : NULL;
	return leaf && leaf->owner == tree->epoch ? leaf : NULL;
}

/**
 * cowsnap_tree_look_around() - what is in all of a leaf?
 * @tree: the tree
 * @index: in the leaf; its class lock is held, or the tree does not change any more
 * @around: out, for each slot of the leaf the granule or NULL, as from
 *	cowsnap_tree_lookup()
 *
 * Return: a bit for each slot that is open.
 */
unsigned long
cowsnap_tree_look_around(struct cowsnap_tree *tree, u64 index,
			 struct cowsnap_granule *around[COWSNAP_LEAF_SLOTS])
{
	struct cowsnap_node *leaf = cowsnap_tree_owned(tree, index);
	unsigned long open = leaf ? leaf->open : 0;
	unsigned long slot;

	if (!leaf)
		leaf = lookup_leaf(tree, index);
	for (slot = 0; slot < COWSNAP_LEAF_SLOTS; slot++)
		around[slot] = leaf ? slot_get(leaf, slot) : NULL;
	return open;
}

static void copy_nodes(struct cowsnap_node *to, struct cowsnap_node *from)
{
	unsigned long slot;

	for (slot = 0; slot < COWSNAP_NODE_SLOTS; slot++) {
		struct cowsnap_node *child = slot_get(from, slot);

		RCU_INIT_POINTER(to->slot[slot], child);
		if (child)
			refcount_inc(&child->refs);
	}
}

/* Most of what the first write in a leaf takes. */
static void copy_granules(struct cowsnap_node *to, struct cowsnap_node *from)
{
	unsigned long slot;

	for (slot = 0; slot < COWSNAP_LEAF_SLOTS; slot++) {
		struct cowsnap_granule *granule = slot_get(from, slot);

		RCU_INIT_POINTER(to->slot[slot], granule);
		if (granule)
			cowsnap_granule_get(granule);
	}
}

/* A copy of @node, owned by @tree, with a reference on each child. */
static struct cowsnap_node *node_copy(struct cowsnap_tree *tree,
				      struct cowsnap_node *node)
{
	struct cowsnap_node *copy = node_alloc(node->shift, tree->epoch);

	if (!copy)
		return NULL;
	if (node->shift)
		copy_nodes(copy, node);
	else
		copy_granules(copy, node);
	copy->count = node->count;
	return copy;
}

/*
 * Makes the node that @pos points to one that @tree owns: takes it over when
 * @pos is its only reference, copies it otherwise.  @pos is the root or in an
 * owned node.  NULL when out of memory.
 */
static struct cowsnap_node *node_own(struct cowsnap_tree *tree,
				     void __rcu **pos)
{
	struct cowsnap_node *node;
	struct cowsnap_node *copy;

	lockdep_assert_held(&tree->lock);
	node = rcu_dereference_protected(*pos, true);
	if (node->owner == tree->epoch)
		return node;

	if (refcount_read(&node->refs) == 1) {
		/* The others' last look came before their refcount_dec. */
		smp_acquire__after_ctrl_dep();
		cowsnap_delay(COWSNAP_DELAY_node_alone);
		node->dirty = 0;
		node->open = 0;
		node->linked = false;
		WRITE_ONCE(node->owner, tree->epoch);
		return node;
	}

	copy = node_copy(tree, node);
	if (!copy)
		return NULL;
	cowsnap_delay(COWSNAP_DELAY_node_copied);
	rcu_assign_pointer(*pos, copy);
	node_moved(tree);
	cowsnap_delay(COWSNAP_DELAY_node_replaced);
	tree_node_put(tree, node);
	return copy;
}

/* Sees to it that there is a root that stands for @index. */
static int tree_grow(struct cowsnap_tree *tree, u64 index)
{
	struct cowsnap_node *root = root_get(tree);

	if (!root) {
		u8 shift = 0;

		while (index > shift_last(shift))
			shift = shift_above(shift);
		root = node_alloc(shift, tree->epoch);
		if (!root)
			return -ENOMEM;
		rcu_assign_pointer(tree->root, root);
	}
	while (!root_covers(root, index)) {
		struct cowsnap_node *top;

		top = node_alloc(shift_above(root->shift), tree->epoch);
		if (!top)
			return -ENOMEM;
		RCU_INIT_POINTER(top->slot[0], root);
		top->count = 1;
		top->open = root->owner == tree->epoch;
		rcu_assign_pointer(tree->root, top);
		root = top;
	}
	return 0;
}

/*
 * Owns the nodes on the path to @index, which the root stands for.  Makes what
 * is missing when @create, else stops there.  Returns the last node of the
 * path, NULL when out of memory.
 */
static struct cowsnap_node *own_path(struct cowsnap_tree *tree, u64 index,
				     bool create)
{
	void __rcu **pos = (void __rcu **)&tree->root;
	struct cowsnap_node *parent = NULL;

	for (;;) {
		struct cowsnap_node *node = node_own(tree, pos);

		if (!node)
			return NULL;
		/*
		 * Who makes a leaf is about to open it: spare it link_leaf().
		 * Not before the child is owned: its bits mean nothing until then.
		 */
		if (create && parent)
			__set_bit(slot_of(parent, index), &parent->open);
		if (!node->shift) {
			node->linked |= create;
			return node;
		}

		parent = node;
		pos = &node->slot[slot_of(node, index)];
		if (!rcu_access_pointer(*pos)) {
			struct cowsnap_node *child;

			if (!create)
				return node;
			child = node_alloc(shift_below(node->shift),
					   tree->epoch);
			if (!child)
				return NULL;
			rcu_assign_pointer(*pos, child);
			node->count++;
		}
	}
}

/* Takes nodes without children out of the path to @index. */
static void tree_prune(struct cowsnap_tree *tree, u64 index)
{
	for (;;) {
		void __rcu **pos = (void __rcu **)&tree->root;
		struct cowsnap_node *node = root_get(tree);
		struct cowsnap_node *parent = NULL;

		if (!root_covers(node, index))
			return;
		while (node && node->count && node->shift) {
			parent = node;
			pos = &node->slot[slot_of(node, index)];
			node = rcu_dereference_protected(*pos, true);
		}
		if (!node || node->count)
			return;
		RCU_INIT_POINTER(*pos, NULL);
		if (parent) {
			parent->count--;
			__clear_bit(pos - parent->slot, &parent->open);
		}
		tree_node_put(tree, node);
	}
}

/**
 * cowsnap_tree_take() - get a leaf that may be changed and could not be
 * @tree: the tree, in which nobody owns it yet
 * @index: at most COWSNAP_INDEX_MAX; its class lock is held
 *
 * Copies or takes over what is not owned on the path to @index and makes what
 * is missing.  When it made the leaf, the caller must store a granule in it
 * before it lets go of the class lock.
 *
 * Return: the leaf, or NULL when out of memory; then what the tree holds has
 * not changed.
 */
struct cowsnap_node *cowsnap_tree_take(struct cowsnap_tree *tree, u64 index)
{
	struct cowsnap_node *leaf;

	mutex_lock(&tree->lock);
	leaf = tree_grow(tree, index) ? NULL : own_path(tree, index, true);
	if (!leaf)
		tree_prune(tree, index);
	mutex_unlock(&tree->lock);
	return leaf;
}

/* A leaf that may be changed, owned already or from cowsnap_tree_take(). */
struct cowsnap_node *cowsnap_tree_own(struct cowsnap_tree *tree, u64 index)
{
	return cowsnap_tree_owned(tree, index) ?:
	       cowsnap_tree_take(tree, index);
}

/* What an owned leaf has at @index, whose class lock is held. */
struct cowsnap_granule *cowsnap_leaf_granule(struct cowsnap_node *leaf,
					     u64 index)
{
	return slot_get(leaf, slot_of(leaf, index));
}

/* Did the tree change @index since its last fork?  Class lock held. */
bool cowsnap_leaf_is_dirty(struct cowsnap_node *leaf, u64 index)
{
	return test_bit(slot_of(leaf, index), &leaf->dirty);
}

/* Notes that @index is changed; true when it was not before.  Class lock held. */
bool cowsnap_leaf_set_dirty(struct cowsnap_node *leaf, u64 index)
{
	return !__test_and_set_bit(slot_of(leaf, index), &leaf->dirty);
}

/**
 * cowsnap_tree_dirty_run() - how many granules were changed in a row up to an index?
 * @tree: the tree
 * @leaf: from cowsnap_tree_own()
 * @index: not counted; its class lock is held
 *
 * Return: those before it, back to the begin of the leaf before this one at the most;
 * of that, which may be of another class, it is a guess.
 */
unsigned int cowsnap_tree_dirty_run(struct cowsnap_tree *tree,
				    struct cowsnap_node *leaf, u64 index)
{
	unsigned long slot = slot_of(leaf, index);
	unsigned long clean = ~leaf->dirty & (BIT(slot) - 1);
	struct cowsnap_node *before;

	if (clean || index == slot)
		return clean ? slot - 1 - __fls(clean) : slot;
	rcu_read_lock();
	before = cowsnap_tree_owned(tree, index - slot - 1);
	clean = BIT(COWSNAP_LEAF_SLOTS) - 1;
	if (before)
		/* Its class lock may be another one: what it says now will do. */
		clean &= ~data_race(READ_ONCE(before->dirty));
	rcu_read_unlock();
	return slot + (clean ? COWSNAP_LEAF_SLOTS - 1 - __fls(clean) :
			       COWSNAP_LEAF_SLOTS);
}

/**
 * cowsnap_leaf_clean_run() - how many granules from an index on are not changed?
 * @leaf: from cowsnap_tree_own()
 * @index: the first that counts; its class lock is held
 *
 * Return: up to the end of the leaf.
 */
unsigned int cowsnap_leaf_clean_run(struct cowsnap_node *leaf, u64 index)
{
	unsigned long slot = slot_of(leaf, index);
	unsigned long dirty = leaf->dirty >> slot;

	return dirty ? __ffs(dirty) : COWSNAP_LEAF_SLOTS - slot;
}

/* Sets the bits above the leaf of @index, all nodes on whose path are owned. */
static void link_leaf(struct cowsnap_tree *tree, struct cowsnap_node *leaf,
		      u64 index)
{
	struct cowsnap_node *node;

	mutex_lock(&tree->lock);
	for (node = root_get(tree); node != leaf;
	     node = slot_get(node, slot_of(node, index)))
		__set_bit(slot_of(node, index), &node->open);
	leaf->linked = true;
	mutex_unlock(&tree->lock);
}

/**
 * cowsnap_tree_open() - note that a granule may be written without asking
 * @tree: the tree
 * @leaf: from cowsnap_tree_own()
 * @index: dirty; its class lock is held
 *
 * Return: true when it was not open before.
 */
bool cowsnap_tree_open(struct cowsnap_tree *tree, struct cowsnap_node *leaf,
		       u64 index)
{
	if (__test_and_set_bit(slot_of(leaf, index), &leaf->open))
		return false;
	if (!leaf->linked)
		link_leaf(tree, leaf, index);
	return true;
}

/**
 * cowsnap_tree_close() - note that granules cannot be written without asking
 * @tree: all of its class locks are held
 * @index: in a leaf that has open granules
 * @slots: a bit for each slot of the leaf that is to be closed
 */
void cowsnap_tree_close(struct cowsnap_tree *tree, u64 index,
			unsigned long slots)
{
	struct cowsnap_node *path[COWSNAP_TREE_HEIGHT];
	struct cowsnap_node *node;
	int depth = 0;

	mutex_lock(&tree->lock);
	for (node = root_get(tree); node->shift;
	     node = slot_get(node, slot_of(node, index)))
		path[depth++] = node;
	node->open &= ~slots;
	if (!node->open)
		node->linked = false;
	while (!node->open && depth) {
		node = path[--depth];
		__clear_bit(slot_of(node, index), &node->open);
	}
	mutex_unlock(&tree->lock);
}

/**
 * cowsnap_leaf_store() - change what is at an index
 * @leaf: from cowsnap_tree_own()
 * @index: its class lock is held
 * @granule: the leaf takes over the caller's reference
 *
 * Return: what was there, with the leaf's reference; NULL for a hole.
 */
struct cowsnap_granule *cowsnap_leaf_store(struct cowsnap_node *leaf, u64 index,
					   struct cowsnap_granule *granule)
{
	unsigned long slot = slot_of(leaf, index);
	struct cowsnap_granule *old = slot_get(leaf, slot);

	rcu_assign_pointer(leaf->slot[slot], granule);
	if (!old)
		leaf->count++;
	return old;
}

/* Is @index open?  Class lock held. */
bool cowsnap_tree_is_open(struct cowsnap_tree *tree, u64 index)
{
	struct cowsnap_node *leaf = cowsnap_tree_owned(tree, index);

	return leaf && test_bit(slot_of(leaf, index), &leaf->open);
}

enum walk {
	WALK_ALL,	/* every node */
	WALK_OPEN,	/* owned nodes with open granules */
	WALK_EXCLUSIVE,	/* nodes that only this tree reaches */
};

/* The first slot at or after @slot that @walk enters. */
static unsigned long walk_next_slot(struct cowsnap_node *node,
				    unsigned long slot, enum walk walk)
{
	if (walk == WALK_OPEN)
		return find_next_bit(&node->open, COWSNAP_NODE_SLOTS, slot);
	for (; slot < COWSNAP_NODE_SLOTS; slot++) {
		struct cowsnap_node *child = rcu_dereference(node->slot[slot]);

		if (child && (walk == WALK_ALL ||
			      refcount_read(&child->refs) == 1))
			break;
	}
	return slot;
}

static bool walk_starts(struct cowsnap_tree *tree, struct cowsnap_node *root,
			u64 index, enum walk walk)
{
	if (!root_covers(root, index))
		return false;
	return walk == WALK_ALL ||
	       (walk == WALK_OPEN && root->owner == tree->epoch) ||
	       (walk == WALK_EXCLUSIVE && refcount_read(&root->refs) == 1);
}

/*
 * The first leaf at or after *@index that @walk enters; *@index moves up to the
 * leaf's first index when that is larger.  Under RCU.
 */
static struct cowsnap_node *walk_to_leaf(struct cowsnap_tree *tree, u64 *index,
					 enum walk walk)
{
	struct cowsnap_node *node;
	unsigned long slot;

again:
	node = rcu_dereference(tree->root);
	if (!walk_starts(tree, node, *index, walk))
		return NULL;
	while (node->shift) {
		slot = walk_next_slot(node, slot_of(node, *index), walk);
		/* On to that slot, perhaps in the next node. */
		if (slot != slot_of(node, *index))
			*index = (*index & ~shift_last(node->shift)) +
				 ((u64)slot << node->shift);
		if (slot == COWSNAP_NODE_SLOTS)
			goto again;
		node = rcu_dereference(node->slot[slot]);
		if (!node)
			goto again;
	}
	return node;
}

/* Moves *@index to the first one of the next leaf; false beyond the last. */
static bool next_leaf_index(u64 *index)
{
	*index = (*index | (COWSNAP_LEAF_SLOTS - 1)) + 1;
	return *index <= COWSNAP_INDEX_MAX;
}

/* From *@index to the first slot of @leaf that has data, or has none. */
static bool leaf_next(struct cowsnap_node *leaf, u64 *index, bool data)
{
	unsigned long slot;

	for (slot = slot_of(leaf, *index); slot < COWSNAP_LEAF_SLOTS; slot++) {
		if (!!rcu_access_pointer(leaf->slot[slot]) == data)
			return true;
		++*index;
	}
	--*index;
	return false;
}

/**
 * cowsnap_tree_next() - find data or a hole
 * @tree: the tree; no lock is needed
 * @index: where to start; out, the first index at or after it that qualifies
 * @data: look for a granule, not for a hole
 *
 * Return: false when there is none up to COWSNAP_INDEX_MAX.
 */
bool cowsnap_tree_next(struct cowsnap_tree *tree, u64 *index, bool data)
{
	do {
		struct cowsnap_node *leaf;
		unsigned long begin;
		bool found, again;
		u64 at;

		do {
			cond_resched();
			rcu_read_lock();
			begin = walk_begin(tree);
			at = *index;
			leaf = data ? walk_to_leaf(tree, &at, WALK_ALL) :
				      find_leaf(tree, at);
			found = leaf ? leaf_next(leaf, &at, data) : !data;
			again = walk_again(tree, begin);
			rcu_read_unlock();
		} while (again);
		*index = at;
		if (found)
			return true;
		if (!leaf)
			return false;
	} while (next_leaf_index(index));
	return false;
}

/**
 * cowsnap_tree_next_open() - find granules that may be written without asking
 * @tree: all of its class locks are held
 * @first: where to start; out, the first open index at or after it
 * @nr: the most to look for; out, how many open indices follow from @first
 *
 * Visits nodes with open granules only.
 *
 * Return: false when nothing more is open.
 */
bool cowsnap_tree_next_open(struct cowsnap_tree *tree, u64 *first, u64 *nr)
{
	struct cowsnap_node *leaf;
	u64 index = *first;
	u64 at = index;
	u64 found = 0;

	rcu_read_lock();
	while (found < *nr && (leaf = walk_to_leaf(tree, &at, WALK_OPEN))) {
		unsigned long slot = slot_of(leaf, at);
		unsigned long open = leaf->open >> slot;
		unsigned long run;

		if (found && at != index)
			break;
		if (!found) {
			if (!open) {
				at = (at | (COWSNAP_LEAF_SLOTS - 1)) + 1;
				continue;
			}
			*first = at + __ffs(open);
			slot += __ffs(open);
			open >>= __ffs(open);
		}
		run = open == ULONG_MAX ? BITS_PER_LONG : ffz(open);
		found += run;
		if (slot + run < COWSNAP_LEAF_SLOTS)
			break;
		index = *first + found;
		at = index;
	}
	rcu_read_unlock();
	*nr = min(found, *nr);
	return found;
}

/*
 * The first leaf at or after *@index that only this tree reaches, and where it
 * begins, if that is larger.  The leaf itself may be looked at under its class lock.
 */
static struct cowsnap_node *exclusive_leaf(struct cowsnap_tree *tree,
					   u64 *index)
{
	struct cowsnap_node *leaf;
	unsigned long begin;
	bool again;
	u64 at;

	do {
		cond_resched();
		rcu_read_lock();
		begin = walk_begin(tree);
		at = *index;
		leaf = walk_to_leaf(tree, &at, WALK_EXCLUSIVE);
		again = walk_again(tree, begin);
		rcu_read_unlock();
	} while (again);
	*index = at;
	return leaf;
}

/**
 * cowsnap_tree_next_exclusive() - find a leaf that only this tree reaches
 * @tree: the tree; no lock is needed, but it must not be forked meanwhile
 * @index: where to start; out, in the first such leaf at or after it
 *
 * Return: false when there is none.
 */
bool cowsnap_tree_next_exclusive(struct cowsnap_tree *tree, u64 *index)
{
	return exclusive_leaf(tree, index);
}

/**
 * cowsnap_tree_leaf_exclusive() - count granules that only this tree reaches
 * @tree: the tree
 * @index: its class lock is held, or the tree does not change any more
 *
 * Return: how many there are in the leaf of @index.
 */
unsigned int cowsnap_tree_leaf_exclusive(struct cowsnap_tree *tree, u64 index)
{
	struct cowsnap_node *leaf;
	unsigned int nr = 0;
	unsigned long slot;
	u64 at = index;

	leaf = exclusive_leaf(tree, &at);
	if (!leaf || at != index)
		return 0;
	/* The class lock keeps the leaf in this tree, and so as it is. */
	for (slot = 0; slot < COWSNAP_LEAF_SLOTS; slot++) {
		struct cowsnap_granule *granule = slot_get(leaf, slot);

		if (granule && !cowsnap_granule_shared(granule))
			nr++;
	}
	return nr;
}

/*
 * The child of @node, which may be NULL, on the way to @index from a level of
 * @shift; a node below that level is the root of a lower tree.
 */
static struct cowsnap_node *diff_child(struct cowsnap_node *node, u8 shift,
				       u64 index)
{
	if (!node || node->shift == shift)
		return node ? rcu_dereference(node->slot[slot_of(node, index)]) :
			      NULL;
	return index & shift_last(shift) & ~((1ULL << shift) - 1) ? NULL : node;
}

/*
 * Moves *@index on to where two nodes of one height do not point to the same; false
 * when they do to their end, and it is behind them.  Most of a walk is here.
 */
static bool skip_shared(struct cowsnap_node *x, struct cowsnap_node *y,
			u64 *index)
{
	unsigned long first = slot_of(x, *index);
	unsigned long slot = first;

	while (slot < COWSNAP_NODE_SLOTS && rcu_access_pointer(x->slot[slot]) ==
					    rcu_access_pointer(y->slot[slot]))
		slot++;
	if (slot != first)
		*index = ((*index >> x->shift) + slot - first) << x->shift;
	return slot < COWSNAP_NODE_SLOTS;
}

/*
 * Descends in both trees to the first pair of leaves, at or after *@index, that
 * are not the same one; either may be missing.  False when there is none.
 */
static bool diff_leaves(struct cowsnap_tree *a, struct cowsnap_tree *b,
			u64 *index, struct cowsnap_node **x,
			struct cowsnap_node **y)
{
	u8 shift;

again:
	*x = rcu_dereference(a->root);
	*y = rcu_dereference(b->root);
	shift = max(*x ? (*x)->shift : 0, *y ? (*y)->shift : 0);
	if (*x == *y || *index > shift_last(shift))
		return false;
	while (shift) {
		struct cowsnap_node *cx, *cy;
		unsigned long slot;

		if (*x && *y && (*x)->shift == shift && (*y)->shift == shift) {
			if (!skip_shared(*x, *y, index))
				goto again;
			slot = slot_of(*x, *index);
			cx = rcu_dereference((*x)->slot[slot]);
			cy = rcu_dereference((*y)->slot[slot]);
		} else {
			cx = diff_child(*x, shift, *index);
			cy = diff_child(*y, shift, *index);
		}
		cowsnap_delay_busy(COWSNAP_DELAY_diff_node_found);
		if (cx == cy) {
			*index = (*index | ((1ULL << shift) - 1)) + 1;
			if (!(*index & shift_last(shift)))
				goto again;
			continue;
		}
		*x = cx;
		*y = cy;
		shift = shift_below(shift);
	}
	return true;
}

/* From *@index on in two leaves, to the first run of slots that differ. */
static u64 leaf_diff(struct cowsnap_node *x, struct cowsnap_node *y, u64 *index,
		     bool *data)
{
	unsigned long slot = *index & (COWSNAP_LEAF_SLOTS - 1);
	u64 nr = 0;

	for (; x && y && slot < COWSNAP_LEAF_SLOTS; slot++, ++*index) {
		if (rcu_access_pointer(x->slot[slot]) !=
		    rcu_access_pointer(y->slot[slot]))
			break;
	}
	for (; slot < COWSNAP_LEAF_SLOTS; slot++) {
		void *gx = x ? rcu_dereference(x->slot[slot]) : NULL;
		void *gy = y ? rcu_dereference(y->slot[slot]) : NULL;

		if (nr && (gx == gy || !!gx != *data))
			break;
		*data = gx;
		if (gx != gy)
			nr++;
		else
			++*index;
	}
	return nr;
}

/**
 * cowsnap_tree_next_diff() - find where two trees do not hold the same granule
 * @a: a tree
 * @b: another
 * @first: where to start; out, the first such index at or after it
 * @nr: out, how many follow from there in one leaf
 * @data: out, whether they are granules in @a, all of them, or holes
 *
 * Skips what they share, so is O(what differs).  Needs no lock; what is changed
 * meanwhile may be found or not.
 *
 * Return: false when there is no more.
 */
bool cowsnap_tree_next_diff(struct cowsnap_tree *a, struct cowsnap_tree *b,
			    u64 *first, u64 *nr, bool *data)
{
	struct cowsnap_node *x, *y;
	bool more, again;

	do {
		unsigned long begin_a, begin_b;
		u64 at = *first;

		cond_resched();
		rcu_read_lock();
		begin_a = walk_begin(a);
		begin_b = walk_begin(b);
		more = diff_leaves(a, b, &at, &x, &y);
		*nr = more ? leaf_diff(x, y, &at, data) : 0;
		again = walk_again(a, begin_a) || walk_again(b, begin_b);
		rcu_read_unlock();
		if (!again)
			*first = at;
	} while (again || (more && !*nr));
	return more;
}

/*
 * An empty node for each end of the range, on each level where a slot may lie in it
 * whole; one where both ends are in one node.
 */
static int trash_prepare(struct cowsnap_tree *tree, u64 first, u64 last,
			 struct cowsnap_trash *trash)
{
	u8 shift;

	trash->nr = 0;
	for (shift = root_get(tree)->shift;; shift = shift_below(shift)) {
		int ends = (first ^ last) <= shift_last(shift) ? 1 : 2;

		if (last - first < (1ULL << shift) - 1)
			ends = 0;
		while (ends--) {
			struct cowsnap_node *node;

			node = node_alloc(shift, tree->epoch);
			if (!node)
				return -ENOMEM;
			trash->node[trash->nr++] = node;
		}
		if (!shift)
			return 0;
	}
}

static struct cowsnap_node *trash_node(struct cowsnap_trash *trash, u8 shift)
{
	unsigned int i;

	for (i = 0; i < trash->nr; i++) {
		if (trash->node[i]->shift == shift && !trash->node[i]->count)
			return trash->node[i];
	}
	WARN_ON_ONCE(1);
	return NULL;
}

static void slot_move(struct cowsnap_node *to, struct cowsnap_node *from,
		      unsigned long slot)
{
	RCU_INIT_POINTER(to->slot[slot], slot_get(from, slot));
	to->count++;
	RCU_INIT_POINTER(from->slot[slot], NULL);
	from->count--;
	if (__test_and_clear_bit(slot, &from->dirty))
		__set_bit(slot, &to->dirty);
	if (__test_and_clear_bit(slot, &from->open))
		__set_bit(slot, &to->open);
}

/*
 * Moves what @node, which is owned, has in [@first, @last], counted from its
 * own first index, to @trash.  Calls itself for the at most two children that
 * the range covers in part, which are owned.
 */
static void node_cut(struct cowsnap_tree *tree, struct cowsnap_node *node,
		     u64 first, u64 last, struct cowsnap_trash *trash)
{
	u64 mask = (1ULL << node->shift) - 1;
	struct cowsnap_node *bin = NULL;
	unsigned long slot;

	for (slot = first >> node->shift; slot <= last >> node->shift; slot++) {
		u64 base = (u64)slot << node->shift;
		struct cowsnap_node *child;

		child = slot_get(node, slot);
		if (!child)
			continue;
		if (first <= base && base + mask <= last) {
			if (!bin)
				bin = trash_node(trash, node->shift);
			if (bin)
				slot_move(bin, node, slot);
			continue;
		}
		node_cut(tree, child, max(first, base) - base,
			 min(last - base, mask), trash);
		if (!child->count) {
			RCU_INIT_POINTER(node->slot[slot], NULL);
			node->count--;
			__clear_bit(slot, &node->open);
			tree_node_put(tree, child);
		}
	}
}

/**
 * cowsnap_tree_remove() - take a range out of a tree
 * @tree: all of its class locks are held
 * @first: the first index
 * @last: the last index, not below @first
 * @trash: out, what was there, for cowsnap_trash_destroy(), which wants no lock
 *
 * Return: 0, or -ENOMEM; then what the tree holds has not changed and @trash is
 * empty.
 */
int cowsnap_tree_remove(struct cowsnap_tree *tree, u64 first, u64 last,
			struct cowsnap_trash *trash)
{
	struct cowsnap_node *root;
	int err = 0;

	trash->nr = 0;
	mutex_lock(&tree->lock);
	root = root_get(tree);
	if (!root_covers(root, first))
		goto out;
	last = min(last, shift_last(root->shift));

	if (!own_path(tree, first, false) || !own_path(tree, last, false))
		err = -ENOMEM;
	else
		err = trash_prepare(tree, first, last, trash);
	if (!err) {
		root = root_get(tree);
		node_cut(tree, root, first, last, trash);
		node_moved(tree);
		if (!root->count) {
			RCU_INIT_POINTER(tree->root, NULL);
			tree_node_put(tree, root);
		}
	}
out:
	mutex_unlock(&tree->lock);
	if (err)
		cowsnap_trash_destroy(tree, trash);
	return err;
}

static void node_tally(struct cowsnap_tree *tree, struct cowsnap_node *node,
		       struct cowsnap_tally *tally)
{
	unsigned int left = node->count;
	unsigned long slot;

	if (!node->shift) {
		tally->granules += node->count;
		if (node->owner == tree->epoch) {
			tally->dirty += hweight_long(node->dirty);
			tally->open += hweight_long(node->open);
		}
		return;
	}
	for (slot = 0; left; slot++) {
		struct cowsnap_node *child = slot_get(node, slot);

		if (!child)
			continue;
		left--;
		node_tally(tree, child, tally);
	}
	cond_resched();
}

/**
 * cowsnap_trash_tally() - count what was removed
 * @tree: where it was removed from; has not been sealed since
 * @trash: from cowsnap_tree_remove()
 * @tally: what the tree no longer reaches is added here
 */
void cowsnap_trash_tally(struct cowsnap_tree *tree,
			 const struct cowsnap_trash *trash,
			 struct cowsnap_tally *tally)
{
	unsigned int i;

	for (i = 0; i < trash->nr; i++)
		node_tally(tree, trash->node[i], tally);
}

/**
 * cowsnap_trash_destroy() - let go of what was removed
 * @tree: where it was removed from
 * @trash: from cowsnap_tree_remove(); empty afterwards
 *
 * O(what only that tree reached); lets the scheduler in.
 */
void cowsnap_trash_destroy(struct cowsnap_tree *tree,
			   struct cowsnap_trash *trash)
{
	might_sleep();
	while (trash->nr)
		tree_node_put(tree, trash->node[--trash->nr]);
}
